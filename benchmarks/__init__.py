"""Performance and planted-truth benchmarks. Not tests."""
