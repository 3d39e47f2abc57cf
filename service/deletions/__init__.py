"""Deleting families, checkpoints and signatures (docs/adr/0035)."""
