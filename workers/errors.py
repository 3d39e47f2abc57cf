"""The ways a run can fail to succeed. Pipelines raise these; the runner turns them into the run's state."""

import errno
import re
from functools import partial
from typing import Any


class RunError(Exception):
    """The run cannot succeed, for example because of bad input. It fails at once with `{code, title, detail}`.

    `code` is for programs (`activations.wrong_width`), `title` names the kind of fault, `detail` describes this one.
    """

    def __init__(self, code: str, detail: str, *, title: str | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.title = title or code.replace(".", ": ").replace("_", " ").replace("-", " ").capitalize()

    def as_dict(self) -> dict[str, Any]:
        """The run's `error`."""
        return {"code": self.code, "title": self.title, "detail": self.detail}

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle, which passes exceptions between processes, would call the class with the message alone.
        return (partial(RunError, title=self.title), (self.code, self.detail))


REFUSALS = frozenset({"content-changed", "download-damaged", "path-refused", "store-refused"})
"""Codes of RunErrors that end a run even if they occur in an optional part: the files are not what was registered, or
must not be read."""


class TooLongError(RunError):
    """The attempt exceeded the time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "took-too-long",
            f"The attempt reached the limit of {seconds:,.0f} seconds (FEATUREWATCH_RUN_SECONDS). Finished stages are "
            "kept: a retry resumes from there.",
        )


def fault_of(error: Exception) -> RunError:
    """The RunError for an error that no pipeline expected."""
    text = f"{type(error).__name__}: {error}"[:4000]
    code = error.errno if isinstance(error, OSError) else None
    match = _IN_TEXT.search(text)  # libraries in Rust raise their own errors
    if code in _FULL or (match and int(match[1]) in _FULL):
        return RunError(
            "disk-full",
            f"{text}. Free some space on the worker's disk (`featurewatch db vacuum` removes unreferenced "
            "artifacts), then retry the run: it resumes after its finished stages.",
            title="The disk is full",
        )
    return RunError("internal", text, title="Something went wrong in the worker")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_TEXT = re.compile(r"\(os error (\d+)\)")


class RunCancelledError(Exception):
    """The run was cancelled; raised at its next check."""


class LeaseLostError(Exception):
    """The run no longer belongs to this worker: stop, and write nothing."""


class WorkerStoppingError(Exception):
    """This process was asked to stop: the run goes back into the queue."""


class GivingWayError(Exception):
    """A run that someone asked for is waiting for the family: this automatic run goes back into the queue."""
