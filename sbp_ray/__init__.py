"""Synthetic Bootstrapped Pretraining on Ray (arXiv 2509.15248)."""

__version__ = "0.1.0"
