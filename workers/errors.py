"""How a run can end other than well. Pipelines raise these; the runner turns them into the run's state."""

import errno
import re
from typing import Any


class RunError(Exception):
    """The run cannot succeed however often it is tried (bad input): it fails at once with `{code, title, detail}`.

    `code` is for programs (`activations.wrong_width`), `title` names the kind of fault, `detail` this very one.
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
        # Exceptions cross process borders by pickle, which would call the class with the one message.
        return (_rebuild, (self.code, self.detail, self.title))


REFUSALS = frozenset({"content-changed", "download-damaged", "path-refused", "store-refused"})
"""Codes of RunErrors that end a run wherever they are met, also in a part that it could do without: what is there is
not what was registered, or may not be read."""


class TooLongError(RunError):
    """The attempt has had all the time that the settings give it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "took-too-long",
            f"It was not done after {seconds:,.0f} seconds, which is all that FEATUREWATCH_RUN_SECONDS gives an "
            "attempt. What it has made is kept: a retry goes on from there.",
        )


def fault_of(error: Exception) -> RunError:
    """What a run says of an error that no pipeline expected."""
    text = f"{type(error).__name__}: {error}"[:4000]
    code = error.errno if isinstance(error, OSError) else None
    told = _IN_TEXT.search(text)  # libraries in Rust have errors of their own for it
    if code in _FULL or (told and int(told[1]) in _FULL):
        return RunError(
            "disk-full",
            f"{text}. Make room on the worker's disk (`featurewatch db vacuum` removes what nothing needs any more), "
            "then retry the run: it goes on from what is made.",
            title="The disk is full",
        )
    return RunError("internal", text, title="Something went wrong in the worker")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_TEXT = re.compile(r"\(os error (\d+)\)")


class RunCancelledError(Exception):
    """Someone asked for the run to be cancelled; raised at the next check."""


class LeaseLostError(Exception):
    """The run belongs to another worker, or to nobody, by now: stop, and write nothing."""


class WorkerStoppingError(Exception):
    """This process was told to end: the run goes back into the queue."""


class GivingWayError(Exception):
    """Nobody asked for this run, and one that somebody did waits for its family: it goes back into the queue."""


def _rebuild(code: str, detail: str, title: str) -> RunError:
    return RunError(code, detail, title=title)
