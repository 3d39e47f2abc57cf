"""The FastAPI side of featurewatch: REST API, store, CLI and client. Never imports torch or workers."""

__version__ = "0.1.0"
