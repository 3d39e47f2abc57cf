"""The demo's output: live progress on a terminal, plain lines elsewhere, tables at the end."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from featurewatch.service.cli.base import show_rows
from featurewatch.workers.demo.outcome import DemoOutcome, Planted

Columns = Sequence[tuple[str, Callable[[Any], Any]]]
Follower = Callable[[Mapping[str, Any]], None]
"""Shows the progress of one run. Call it with every new state of the run."""

TOKENS_WIDTH = 32
PLAIN_LINE_SECONDS = 15.0
"""Without a terminal: seconds between progress lines of one stage."""


class Show:
    """Prints to one console."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    @contextmanager
    def following(self, name: str) -> Iterator[Follower]:
        """Follow a run: a progress bar for its current stage, or plain lines."""
        if not self.console.is_terminal:
            yield PlainFollower(self, name)
            return
        columns = (TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[more]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
            task = progress.add_task(name, total=1.0, more="")
            yield lambda run: progress.update(
                task,
                description=f"{name} {run['stage'] or run['state']}",
                completed=run["progress"],
                more=_detail(run),
            )

    def outcome(self, outcome: DemoOutcome, names: Mapping[str, str]) -> None:
        """Print the result as tables. names: release -> description."""
        self._planted(outcome.planted)
        releases = [
            ("release", lambda row: row[0]),
            ("content", lambda row: names[row[0]]),
            ("verdicts", lambda row: [f"{n:,} {status}" for status, n in sorted(row[1].items(), key=lambda p: -p[1])]),
            ("alerts", lambda row: len(outcome.alerts.get(row[0], []))),
        ]
        self._table(outcome.counts.items(), releases, wraps=("verdicts", "content"))
        for summaries in outcome.alerts.values():
            for summary in summaries:
                self.say(f"alert: {summary}")
        for event in outcome.webhooks:
            self.say(f"webhook received, signature valid: {event['type']} ({event['checkpoint']})")
        checks = [
            ("", lambda row: Text("ok", "green") if row.passed else Text("NO", "red")),
            ("check", lambda row: row.name),
            ("result (goal)", lambda row: row.value),
        ]
        self._table(outcome.checks, checks, wraps=("check", "result (goal)"))

    def _planted(self, planted: list[Planted]) -> None:
        self.say("\nEdits planted in v3, and the verdicts on them:")
        columns = [
            ("feature", lambda row: row.feature),
            ("removed", lambda row: f"{row.alpha:.0%}"),
            ("left", lambda row: f"{row.expected_ratio:.2f}"),
            ("measured", _measured),
            ("95% interval", lambda row: _interval(row.projection_ratio_ci)),
            ("verdict", lambda row: row.status),
            ("right", lambda row: Text("yes", "green") if row.right else Text("no", "red")),
            ("top tokens", lambda row: _tokens(row.top_tokens)),
        ]
        self._table(planted, columns, optional=("removed", "top tokens"))
        if any(each.expected_ratio == 0.5 for each in planted):
            self.say(
                "At 50% the true value is the default threshold itself, so present, suppressed and indeterminate all "
                "count as correct."
            )

    def _table(self, rows: Iterable[Any], columns: Columns, **layout: Sequence[str]) -> None:
        self.say("")
        show_rows(rows, columns, empty="none", console=self.console, **layout)
        self.say("")


class PlainFollower:
    """Prints a line when a stage begins, and now and then while it continues."""

    def __init__(self, show: Show, name: str) -> None:
        self._show, self._name = show, name
        self._stage: str | None = None
        self._printed = 0.0

    def __call__(self, run: Mapping[str, Any]) -> None:
        now = time.monotonic()
        new = run["stage"] != self._stage or run["state"] not in ("queued", "running")
        if run["stage"] and (new or now - self._printed > PLAIN_LINE_SECONDS):
            self._stage, self._printed = run["stage"], now
            self._show.say(f"{self._name}: {_line(run)}")


def _measured(planted: Planted) -> Text:
    ratio = planted.projection_ratio
    return Text("-" if ratio is None else f"{ratio:.2f}", "" if planted.close else "red")


def _interval(ends: list[float] | None) -> str | None:
    return f"{ends[0]:.2f} .. {ends[1]:.2f}" if ends else None


def _tokens(tokens: list[str]) -> str:
    """Tokens in one line of limited length. Those that differ only in spaces or case appear once."""
    distinct = {token.strip().lower(): repr(token.strip() or token)[1:-1] for token in reversed(tokens)}
    text = " ".join(reversed(distinct.values()))
    return text if len(text) <= TOKENS_WIDTH else text[: TOKENS_WIDTH - 1] + "…"


def _line(run: Mapping[str, Any]) -> str:
    if run["state"] not in ("queued", "running"):
        seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in run["seconds"].items())
        return f"{run['state']} ({seconds})"
    return " ".join(part for part in (run["stage"], f"{run['progress']:.0%}", _detail(run)) if part)


def _detail(run: Mapping[str, Any]) -> str:
    """Speed and steps, if the stage reports them."""
    detail, parts = run["detail"], []
    if "step" in detail and "steps" in detail:
        parts.append(f"step {detail['step']:,} of {detail['steps']:,}")
    if detail.get("positions_per_second"):
        parts.append(f"{detail['positions_per_second']:,.0f} positions/s")
    return ", ".join(parts)
