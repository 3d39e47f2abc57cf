"""The demo: three releases of a real language model, one of them edited, through the whole service.

`featurewatch demo` starts an embedded installation, registers the releases over REST as a CI job would, receives its
own webhook, and compares the verdicts with the planted edits.
"""
