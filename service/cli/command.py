"""How commands are declared: most as a row that names a method of the client, the others as a function with a view.

    calls(run_app, "cancel", Client.cancel, fields("state"), run=RunId)

    @command(run_app, "wait", fields("state", "seconds"))
    def wait_for_run(client: Client, run: RunId, timeout: Timeout = None) -> types.Run:
        \"\"\"Wait until a run has ended.\"\"\"
        return progress.follow(client, run, timeout)

All of them have `--json`, and print results that are iterators in full.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar, get_args

import typer
from typer.models import ArgumentInfo

from featurewatch.service.cli import base
from featurewatch.service.client import Client

View = Callable[[Any], None]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Table:
    """A view of rows. Column names are keys of a row, unless `computed` has another key or a function of the row.

    `base.show_rows` explains `wraps` and `optional`.
    """

    columns: Sequence[str]
    computed: Mapping[str, str | Callable[[Any], Any]] = field(default_factory=dict)
    empty: str = ""
    wraps: Sequence[str] = ()
    optional: Sequence[str] = ()

    def __call__(self, rows: Iterable[Any]) -> None:
        """Print the rows."""
        columns = [(_heading(name), self.computed.get(name, name)) for name in self.columns]
        wraps, optional = [_heading(name) for name in self.wraps], [_heading(name) for name in self.optional]
        base.show_rows(rows, columns, empty=self.empty, wraps=wraps, optional=optional)


def fields(*names: str) -> View:
    """A view of a document: these members, or all of them."""
    return lambda document: base.show_fields((name, document[name]) for name in names or document)


def command(
    app: typer.Typer, name: str, view: View, *, then: View | None = None, hidden: bool = False
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

        exposed = [*parameters[connects:], _parameter("as_json", base.AsJson)]
        run.__signature__ = inspect.Signature(exposed)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in exposed}
        app.command(name, hidden=hidden)(run)
        return function

    return register


def calls(app: typer.Typer, name: str, method: Callable[..., Any], view: View, /, **parameters: Any) -> None:
    """Add a command that calls a method of the client, with its docstring as help text.

    parameters: those of the method that become arguments and options, with their annotations.
    """

    def run(client: Client, **arguments: Any) -> Any:
        return method(client, **arguments)

    command(app, name, view)(_described(run, method, parameters))


def deletes(app: typer.Typer, method: Callable[..., Any], question: str | None = None, /, **parameters: Any) -> None:
    """Add a `delete` command, as in `calls`. question: what to confirm first, with parameters in braces."""
    *_, last = (name for name, annotation in parameters.items() if _is_argument(annotation))

    def run(client: Client, *, yes: bool = False, **arguments: Any) -> dict[str, Any]:
        if question:
            base.confirm(question.format(**arguments), yes=yes)
        method(client, **arguments)
        return {"deleted": arguments[last]}

    confirmation = {"yes": base.Yes} if question else {}
    add = command(app, "delete", lambda document: base.say(f"Deleted {document['deleted']}."))
    add(_described(run, method, parameters | confirmation))


def _heading(name: str) -> str:
    return name.replace("_", " ").upper()


def _described(
    run: Callable[..., Any], method: Callable[..., Any], parameters: Mapping[str, Any]
) -> Callable[..., Any]:
    """The function with these parameters, and the first paragraph of the method's docstring."""
    client = inspect.Parameter("client", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.Signature([client, *(_parameter(*item) for item in parameters.items())])
    run.__doc__ = (inspect.getdoc(method) or "").partition("\n\n")[0]
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    """A required argument, or an option that is off or None by default."""
    default: Any = False if get_args(annotation)[0] is bool else None
    if _is_argument(annotation):
        default = inspect.Parameter.empty
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _is_argument(annotation: Any) -> bool:
    return any(isinstance(item, ArgumentInfo) for item in get_args(annotation))
