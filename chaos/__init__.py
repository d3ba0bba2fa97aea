"""Proof by simulation and by force."""
