"""Training: read main.py first."""
