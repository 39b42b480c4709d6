"""Pairs from lists of neighbours: which are related and not copies, how often a document may appear, and a guide."""
