"""Signatures: named concepts that a contrast set shows, read in every checkpoint."""
