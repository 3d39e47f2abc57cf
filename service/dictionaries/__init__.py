"""Dictionaries: the decoder and read-out of each feature in a checkpoint at one hook point."""
