"""Names for shell completion, from the service."""

from collections.abc import Callable, Iterable
from itertools import islice

import typer

from service.cli import base
from service.client import Client, ClientError

SECONDS = 1.0
"""A shell that completes is waited for by a person."""
RUNS = 50
"""The newest ones: an id that is older is copied from somewhere."""


def families(context: typer.Context, incomplete: str) -> list[str]:
    """Names of families that begin so."""
    return _names(context, incomplete, lambda client: (row["name"] for row in client.families()))


def checkpoints(context: typer.Context, incomplete: str) -> list[str]:
    """Names of checkpoints of the family that was given before."""
    family = context.params.get("family")
    if not family:
        return []
    return _names(context, incomplete, lambda client: (row["name"] for row in client.checkpoints(family)))


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of the newest runs that begin so."""
    return _names(context, incomplete, lambda client: (row["id"] for row in islice(client.runs(), RUNS)))


def _names(context: typer.Context, incomplete: str, ask: Callable[[Client], Iterable[str]]) -> list[str]:
    """What the service names; nothing where it does not answer, as a prompt is no place for an error."""
    options = context.find_root().params
    base.options(url=options.get("url"), key=options.get("key"))
    try:
        with Client(base.target().url, base.target().key, timeout=SECONDS, retries=0) as client:
            return [name for name in ask(client) if name.startswith(incomplete)]
    except ClientError:
        return []
