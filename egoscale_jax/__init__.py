"""EgoScale in JAX: from egocentric human video to a dexterous robot policy (arXiv:2602.16710)."""

__version__ = "0.1.0"
