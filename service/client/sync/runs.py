# Written by `make docs` from service/client/aio/runs.py.
"""Calls about runs."""

import time
from collections.abc import Callable, Iterator

from featurewatch.service.client import types
from featurewatch.service.client.errors import WaitTimeoutError
from featurewatch.service.client.sync.transport import Transport
from featurewatch.service.client.wire import path_of
from featurewatch.service.runs.states import FINAL


class RunCalls(Transport):
    """One method for each call."""

    def runs(
        self, *, family: str | None = None, checkpoint: str | None = None, state: str | None = None
    ) -> Iterator[types.Run]:
        """List runs, newest first."""
        return self._list("runs", family=family, checkpoint=checkpoint, state=state)

    def run(self, run: str) -> types.Run:
        """Get a run."""
        return self._get("runs", run)

    def attempts(self, run: str) -> Iterator[types.Attempt]:
        """List the attempts at a run, oldest first, with the outcome and the resources used."""
        return self._list("runs", run, "attempts")

    def log(
        self, run: str, *, attempt: int | None = None, level: str | None = None, after: int | None = None
    ) -> Iterator[types.LogLine]:
        """List what the workers logged, oldest first.

        attempt: only of this one. level: minimum level, info, warning or error. after: number of the last line seen.
        """
        return self._list("runs", run, "log", attempt=attempt, level=level, after=after)

    def cancel(self, run: str) -> types.Run:
        """Cancel a run. Its worker stops at the next step."""
        return self._post("runs", run, "cancel")

    def retry(self, run: str) -> types.Run:
        """Queue a failed or cancelled run again. It continues from the results that it has saved."""
        return self._post("runs", run, "retry")

    def delete_run(self, run: str) -> None:
        """Delete a run that has ended, with its attempts and log. The results for its checkpoint are kept."""
        self._delete("runs", run)

    def progress(self, run: str) -> Iterator[types.Run]:
        """Stream the run whenever it changes, until it ends: server-sent events, for up to 15 minutes."""
        return self.events(path_of("runs", run, "events"))

    def wait(
        self,
        run: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[types.Run], None] | None = None,
        interval: float = 1.0,
    ) -> types.Run:
        """Wait until a run has succeeded, failed or been cancelled. `on_progress` gets the run at each poll.

        Raises WaitTimeoutError after `timeout` seconds; the run continues.
        """
        start = time.monotonic()
        while True:
            current = self.run(run)
            if on_progress:
                on_progress(current)
            if current["state"] in FINAL:
                return current
            left = None if timeout is None else start + timeout - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeoutError(current, timeout or 0.0)
            self.pause(interval if left is None else min(interval, left))
