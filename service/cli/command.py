"""How commands are declared: a function that returns a result, and a view that prints it.

    @command(webhook_app, "list", Table({"ID": "id", "URL": "url"}, empty="No webhooks yet."))
    def list_webhooks(client: Client) -> Iterator[Webhook]:
        \"\"\"List the webhooks.\"\"\"
        return client.webhooks()

`command` adds the connection and `--json`; results that are iterators are read to the end.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import typer

from featurewatch.service.cli import base

View = Callable[[Any], None]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Table:
    """A view of rows. `base.show_rows` explains `wraps` and `optional`."""

    columns: Mapping[str, str | Callable[[Any], Any]]
    """heading -> key of the row, or a function of the row"""
    empty: str = ""
    wraps: Sequence[str] = ()
    optional: Sequence[str] = ()

    def __call__(self, rows: Iterable[Any]) -> None:
        """Print the rows."""
        base.show_rows(rows, self.columns.items(), empty=self.empty, wraps=self.wraps, optional=self.optional)


def fields(*names: str) -> View:
    """A view of a document: these members, or all of them."""
    return lambda document: base.show_fields((name, document[name]) for name in names or document)


def deleted(document: Mapping[str, str]) -> None:
    """The view of `{"deleted": name}`."""
    base.say(f"Deleted {document['deleted']}.")


def command(
    app: typer.Typer, name: str, view: View, *, then: View | None = None, **options: Any
) -> Callable[[Function], Function]:
    """Add a function to `app` as a command; its docstring is the help text.

    A first parameter called `client` gets a connection to the service; the other parameters are arguments and options.
    The result is printed by `view`, or as JSON with `--json`, and then given to `then`.
    """

    def register(function: Function) -> Function:
        parameters = list(inspect.signature(function).parameters.values())
        connects = [parameter.name for parameter in parameters[:1]] == ["client"]

        @wraps(function)
        def run(*, as_json: bool, **arguments: Any) -> None:
            with base.connect() if connects else nullcontext() as client:
                result = function(client, **arguments) if connects else function(**arguments)
                if isinstance(result, Iterator):
                    result = list(result)
            base.show_json(result) if as_json else view(result)
            if then:
                then(result)

        json_option = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=base.AsJson
        )
        exposed = [*parameters[connects:], json_option]
        run.__signature__ = inspect.Signature(exposed)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in exposed}
        app.command(name, **options)(run)
        return function

    return register
