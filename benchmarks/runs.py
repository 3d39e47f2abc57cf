"""Waiting for a service's runs."""

from typing import Any

from featurewatch.service.client import Client
from featurewatch.service.client.types import Run


def succeeded(client: Client, run: str, what: str, log: Any = None) -> Run:
    """Wait until a run succeeds; raises SystemExit if it ends otherwise. Logs its seconds to `log`, if given."""
    done = client.wait(run, timeout=7200, interval=0.2)
    if done["state"] != "succeeded":
        raise SystemExit(f"{what}: the run {done['state']}: {done['error']}")
    if log is not None:
        print(f"{what}: {done['seconds']}", file=log, flush=True)
    return done
