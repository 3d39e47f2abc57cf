"""Jackknife folds."""

FOLDS = 20
"""Folds of documents, or of the groups of a contrast set. Intervals of verdicts, signatures and dependencies are
jackknife intervals over as many"""
