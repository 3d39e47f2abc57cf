"""Deleting families and checkpoints (docs/adr/0035)."""
