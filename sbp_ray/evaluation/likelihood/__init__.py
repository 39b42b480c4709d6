"""Likelihood: what each model makes of held-out documents and of the answers to questions."""
