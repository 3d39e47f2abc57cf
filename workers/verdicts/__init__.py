"""Measurements of features: what a source writes for each of them, and how sure that is. No I/O, no service.

The rule that turns measurements into a status is `service.verdicts.judge`: the API compares any two checkpoints by it.
"""
