"""Hands: descriptions, kinematics, retargeting. This room and geometry.py can be used on their own."""
