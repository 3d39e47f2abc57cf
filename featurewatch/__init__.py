"""featurewatch from Python: clients of the REST API, and families for notebooks.

from featurewatch import Family

assistant = Family("assistant")                       # FEATUREWATCH_URL and FEATUREWATCH_KEY, or url= and key=
verdicts = assistant.trajectories()                   # pandas: every feature in every checkpoint
code = assistant.codes()                              # scipy CSR: positions x features
rows = assistant.decoder("v2", "resid_post.12")       # torch: features x d_model
read = assistant.encode(["Keep this secret."], "v2")  # features at every token of your own text
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurewatch.family import Dictionary, Encoded, Family
    from featurewatch.service.client import (
        ApiError,
        AsyncClient,
        Client,
        ClientError,
        UnreachableError,
        WaitTimeoutError,
    )

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "Dictionary",
    "Encoded",
    "Family",
    "UnreachableError",
    "WaitTimeoutError",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the service and the workers are in this package too, and must load neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "family" if name in ("Dictionary", "Encoded", "Family") else "service.client"
    return getattr(import_module(f"{__name__}.{home}"), name)
