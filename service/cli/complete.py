"""Shell completion: names and ids from the service, and the words that an option accepts.

Each kind of argument has one completer, to pass as `autocompletion=`.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import typer

from featurewatch.service.cli import base
from featurewatch.service.client import Client, ClientError
from featurewatch.service.client.wire import PAGE_LIMIT
from featurewatch.service.verdicts.statuses import Places, Status

SECONDS = 1.0
"""Timeout of a request: a person is waiting at the prompt."""
NEWEST = 50
"""Maximum number of rows of lists that keep growing. Older ids are copied, not typed."""

Completer = Callable[[typer.Context, str], list[tuple[str, str]]]


def words(*known: str) -> Callable[[], list[str]]:
    """A completer of fixed words."""
    return lambda: list(known)


def _names(ask: Callable[[Client, str], Iterable[tuple[str, str]]], of: str | None = None) -> Completer:
    """A completer of names from the service, each with a description, which some shells show.

    ask: takes the client and the value of the earlier argument `of`. Nothing is completed if that value is missing.
    """

    def completer(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        # Click leaves the family in `args` if the option before the cursor has no value yet.
        scope = (context.params.get(of) or next(iter(context.args), "")) if of else ""
        if of and not scope:
            return []
        options = context.find_root().params
        base.options(url=options.get("url"), key=options.get("key"))
        try:
            with Client(base.target.url, base.target.key, timeout=SECONDS, retries=0) as client:
                names = [(base.cell(name), base.cell(about)) for name, about in ask(client, scope)]
        except ClientError:  # do not print errors at a prompt
            return []
        return [(name, about) for name, about in names if name.startswith(incomplete)]

    return completer


statuses = words(*Status)
places = words(*Places)
families = _names(lambda client, _: ((row["name"], "") for row in client.families()))
checkpoints = _names(
    lambda client, family: ((row["name"], row["state"]) for row in client.checkpoints(family)), of="family"
)
features = _names(
    lambda client, family: (
        (row["id"], row["label"] or row["auto_label"] or "") for row in islice(client.features(family), PAGE_LIMIT)
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
