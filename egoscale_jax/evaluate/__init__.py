"""Evaluation: validation with fixed noise. Imports data and models only, so that training can call it."""
