"""The `featurewatch` command: the service itself (`up`, `db`, `key`), and the REST API from a shell."""

import sys

import typer

from featurewatch.service.cli import (
    base,
    calibrate,
    checkpoints,
    dependencies,
    export,
    features,
    label,
    notify,
    signatures,
)
from featurewatch.service.cli.gate import register
from featurewatch.service.cli.host import database, server
from featurewatch.service.client import ApiError, ClientError, UnreachableError, WaitTimeoutError

app = typer.Typer(
    name="featurewatch",
    help="Which features of a model family are still there in a new checkpoint, and which were suppressed or replaced.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.callback()(base.options)
server.add_to(app)
database.add_to(app)
checkpoints.add_to(app)
register.add_to(app)
features.add_to(app)
export.add_to(app)
signatures.add_to(app)
notify.add_to(app)
calibrate.add_to(app)
label.add_to(app)
dependencies.add_to(app)

UNAVAILABLE_STATUS = 500
_LISTED = {
    "family": "family list",
    "checkpoint": "checkpoint list FAMILY",
    "feature": "features FAMILY",
    "signature": "signature list FAMILY",
    "run": "run list",
    "webhook": "webhook list",
    "alert rule": "alert rule list",
    "alert": "alert list",
}
"""What lists the names that a command may be given."""


def main() -> None:
    """Entry point. Exit codes: 0 fine, 1 gate or run failed, 2 usage or key, 3 timeout or unavailable."""
    try:
        app()
    except WaitTimeoutError as error:
        hint = f"It goes on; look again with `featurewatch run wait {error.run['id']}`."
        sys.exit(base.complain(f"{error}. {hint}", base.UNAVAILABLE))
    except UnreachableError as error:
        hint = "Start it with `featurewatch up`, or name another one: --url or FEATUREWATCH_URL."
        sys.exit(base.complain(f"{error}\n{hint}", base.UNAVAILABLE))
    except ApiError as error:
        sys.exit(base.complain(_explain(error), base.UNAVAILABLE if error.status >= UNAVAILABLE_STATUS else base.USAGE))
    except (ClientError, base.UsageError) as error:
        sys.exit(base.complain(str(error), base.USAGE))


def _explain(error: ApiError) -> str:
    text = str(error)
    for fault in error.document.get("errors") or []:
        said = f"{fault.get('pointer') or fault.get('location')}: {fault.get('detail')}"
        text += "" if said in text else f"\n  {said}"  # the detail has the first few
    if error.status == 401:
        text += "\nGive a key with --key or FEATUREWATCH_KEY; `featurewatch key create` on the server makes one."
    if error.status == 403 and error.code == "missing-scope":
        text += "\n`featurewatch key create --scope ...` on the server makes a key with more scopes."
    if error.status == 404:
        noun = next((noun for noun in _LISTED if f"no {noun} " in error.detail), None)
        text += f"\n`featurewatch {_LISTED[noun]}` lists those that there are." if noun else ""
    if error.status >= UNAVAILABLE_STATUS and error.document.get("request_id"):
        text += f"\nThe server's log has more under the request id {error.document['request_id']}."
    return text
