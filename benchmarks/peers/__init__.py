"""Trainers of `benchmarks.fit`, each a program of its own that `participant` gives its batches."""
