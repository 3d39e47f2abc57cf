"""Trainers of `benchmarks.fit`, each a separate program that gets its batches from `participant`."""
