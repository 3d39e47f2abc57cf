"""Deleting families and checkpoints (docs/adr/0037)."""
