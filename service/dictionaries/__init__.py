"""Dictionaries of sources: what a checkpoint writes and reads for each feature at one hook point."""
