"""The `featurewatch` command: the service itself (`up`, `db`, `key`), and the REST API from a shell."""

import sys

import typer

from featurewatch.service.cli import (
    alerts,
    base,
    calibrate,
    checkpoints,
    dependencies,
    export,
    families,
    features,
    label,
    runs,
    signatures,
    webhooks,
)
from featurewatch.service.cli.gate import register
from featurewatch.service.cli.host import database, server
from featurewatch.service.client import ApiError, ClientError, UnreachableError, WaitTimeoutError

app = typer.Typer(
    name="featurewatch",
    help="Find out which features of a model family a new checkpoint still has, and which were suppressed or replaced.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.callback()(base.options)
checkpoints.checkpoint_app.command()(register.register)
for module in (
    server,
    database,
    families,
    checkpoints,
    runs,
    features,
    export,
    signatures,
    webhooks,
    alerts,
    calibrate,
    label,
    dependencies,
):
    app.add_typer(module.app)

UNAVAILABLE_STATUS = 500
_LISTED = {
    "unknown-family": "family list",
    "unknown-checkpoint": "checkpoint list FAMILY",
    "unknown-feature": "features FAMILY",
    "unknown-signature": "signature list FAMILY",
    "unknown-run": "run list",
    "unknown-webhook": "webhook list",
    "unknown-alert-rule": "alert rule list",
    "unknown-alert": "alert list",
}
"""Code of an error -> the command that lists the names that exist."""


def main() -> None:
    """Entry point. Exit codes: 0 success, 1 gate or run failed, 2 usage or key, 3 timeout or unavailable."""
    try:
        app()
    except WaitTimeoutError as error:
        hint = f"The run continues; wait for it with `featurewatch run wait {error.run['id']}`."
        sys.exit(base.complain(f"{error}. {hint}", base.UNAVAILABLE))
    except UnreachableError as error:
        hint = "Start the service with `featurewatch up`, or name another one with --url or FEATUREWATCH_URL."
        sys.exit(base.complain(f"{error}\n{hint}", base.UNAVAILABLE))
    except ApiError as error:
        sys.exit(base.complain(_explain(error), base.UNAVAILABLE if error.status >= UNAVAILABLE_STATUS else base.USAGE))
    except (ClientError, base.UsageError) as error:
        sys.exit(base.complain(str(error), base.USAGE))


def _explain(error: ApiError) -> str:
    text = str(error)
    for fault in error.document.get("errors") or []:
        line = f"{fault.get('pointer') or fault.get('location')}: {fault.get('detail')}"
        text += "" if line in text else f"\n  {line}"  # the detail contains the first few
    if error.status == 401:
        text += "\nPass a key with --key or FEATUREWATCH_KEY. Create one with `featurewatch key create` on the server."
    if error.status == 403 and error.code == "missing-scope":
        text += "\nCreate a key with more scopes with `featurewatch key create --scope ...` on the server."
    if error.code in _LISTED:
        text += f"\nList the existing ones with `featurewatch {_LISTED[error.code]}`."
    if error.status >= UNAVAILABLE_STATUS and error.document.get("request_id"):
        text += f"\nThe server's log has details under the request id {error.document['request_id']}."
    return text
