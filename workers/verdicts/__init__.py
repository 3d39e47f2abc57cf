"""Measurements of features: what a source writes for each of them, with confidence intervals. No I/O, no service.

The rule that turns measurements into a status is in `service.verdicts.judge`; the API uses it too.
"""
