"""What a shell completes: names and ids from the service, and words that an option takes.

There is one completer for each kind of argument; `autocompletion=` of an argument or option names it.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import typer

from featurewatch.service.cli import base
from featurewatch.service.client import Client, ClientError
from featurewatch.service.runs.states import RunState
from featurewatch.service.verdicts.statuses import Status

SECONDS = 1.0
"""A shell that completes is waited for by a person."""
NEWEST = 50
"""Of what there is more and more of: an id that is older is copied from somewhere."""
FEATURES = 500
"""Those that changed most, which fit into one answer of the API."""

Completer = Callable[[typer.Context, str], list[tuple[str, str]]]


def words(*known: str) -> Callable[[], list[str]]:
    """A completer of a few words."""
    return lambda: list(known)


def _names(ask: Callable[[Client, str], Iterable[tuple[str, str]]], of: str | None = None) -> Completer:
    """A completer of what the service names, each with a few words about it, which some shells show.

    ask: from the client, and the argument `of` that was given before; nothing is completed where it was not.
    """

    def completer(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        # Click leaves the family in `args` where the option before the cursor has no value yet.
        given = (context.params.get(of) or next(iter(context.args), "")) if of else ""
        if of and not given:
            return []
        options = context.find_root().params
        base.options(url=options.get("url"), key=options.get("key"))
        try:
            with Client(base.target().url, base.target().key, timeout=SECONDS, retries=0) as client:
                found = [(base.cell(name), base.cell(about)) for name, about in ask(client, given)]
        except ClientError:  # a prompt is no place for an error
            return []
        return [(name, about) for name, about in found if name.startswith(incomplete)]

    return completer


statuses = words(*Status)
states = words(*RunState)
families = _names(lambda client, _: ((row["name"], "") for row in client.families()))
checkpoints = _names(
    lambda client, family: ((row["name"], row["state"]) for row in client.checkpoints(family)), of="family"
)
features = _names(
    lambda client, family: (
        (row["id"], row["label"] or row["auto_label"] or "") for row in islice(client.features(family), FEATURES)
    ),
    of="family",
)
signatures = _names(
    lambda client, family: ((row["name"], row["description"]) for row in client.signatures(family)), of="family"
)
runs = _names(lambda client, _: ((row["id"], f"{row['kind']} {row['state']}") for row in islice(client.runs(), NEWEST)))
webhooks = _names(lambda client, _: ((row["id"], row["url"]) for row in client.webhooks()))
deliveries = _names(
    lambda client, webhook: ((row["id"], row["type"]) for row in islice(client.deliveries(webhook), NEWEST)),
    of="webhook",
)
alerts = _names(lambda client, _: ((row["id"], row["summary"]) for row in islice(client.alerts(), NEWEST)))
rules = _names(lambda client, _: ((row["id"], row["name"]) for row in client.alert_rules()))
keys = _names(lambda client, _: ((row["id"], row["name"]) for row in islice(client.keys(), NEWEST)))
