"""Experiments: a grid of arms, seeds and synthetic shares over one corpus, run as a graph of stages and compared."""
