"""Signatures: named concepts defined by a contrast set and read in every checkpoint."""
