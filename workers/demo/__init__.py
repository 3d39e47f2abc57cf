"""The demo: three releases of a real language model, one of them tampered with, through the whole service.

`featurewatch demo` starts an embedded installation, registers the releases over REST as a
CI job would, receives its own webhook, and sets the verdicts beside what was planted.
"""
