"""Waiting for a run: progress bars on a terminal, lines elsewhere."""

import time

import typer
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from featurewatch.service.cli import base
from featurewatch.service.client import Client
from featurewatch.service.client.types import Run

_STEADY_SECONDS, _STEADY_SHARE = 3.0, 0.02
"""How much of a stage must have passed before its speed is a basis for an estimate."""


def follow(client: Client, run: str, timeout: float | None) -> Run:
    """Wait for a run and show its progress on stderr: bars on a terminal, else one line per stage."""
    if not base.err.is_terminal:
        return client.wait(run, timeout=timeout, on_progress=_Lines())
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
    )
    with Progress(*columns, console=base.err, transient=True) as bar:
        return client.wait(run, timeout=timeout, on_progress=_Bars(bar), interval=0.5)


def exit_unless_succeeded(run: Run) -> None:
    """Exit with code 1 and the reason if a run has failed or was cancelled."""
    if run["state"] != "succeeded":
        raise typer.Exit(base.complain(describe_end(run), base.FAILED))


def describe_end(run: Run) -> str:
    """How a run ended, with its error if it has one."""
    error = run["error"]
    reason = f": {error['title']}: {error['detail']} ({error['code']})" if error else ""
    return f"run {run['id']} {run['state']}{reason}"


def rate(run: Run) -> str:
    """The speed of the current stage, e.g. `2,100 positions/s`."""
    speeds = {name: value for name, value in run["detail"].items() if name.endswith("_per_second")}
    return ", ".join(f"{float(v):,.0f} {name.removesuffix('_per_second')}/s" for name, v in speeds.items() if v)


class _Clock:
    """Estimates the remaining time of the current stage from its speed so far."""

    def __init__(self) -> None:
        self.stage, self.start, self.first = "", 0.0, 0.0

    def left(self, run: Run) -> str:
        """`about 40 s left`; empty while there is no estimate."""
        now, stage, done = time.monotonic(), run["stage"] or run["state"], run["progress"]
        if stage != self.stage:
            self.stage, self.start, self.first = stage, now, done
        elapsed, advance = now - self.start, done - self.first
        if elapsed < _STEADY_SECONDS or advance < _STEADY_SHARE or done >= 1:
            return ""
        return f"about {base.duration((1 - done) * elapsed / advance)} left"


class _Bars:
    """One progress bar per stage."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.stage, self.clock = bar, "", _Clock()
        self.task: TaskID = bar.add_task("queued", total=None, rate="", left="")

    def __call__(self, run: Run) -> None:
        stage = run["stage"] or run["state"]
        if stage != self.stage:
            if self.stage:
                total = 1.0 if self.stage not in ("queued", "running") else None
                self.bar.update(self.task, completed=total, total=total, visible=total is not None, left="")
                self.task = self.bar.add_task(stage, total=1.0, rate="", left="")
            self.stage = stage
        left, speed = self.clock.left(run), rate(run)
        self.bar.update(self.task, description=stage, total=1.0, completed=run["progress"], rate=speed, left=left)


class _Lines:
    """One line per stage, and one every 30 seconds."""

    def __init__(self) -> None:
        self.stage, self.printed, self.clock = "", 0.0, _Clock()

    def __call__(self, run: Run) -> None:
        stage, left = run["stage"] or run["state"], self.clock.left(run)
        now = time.monotonic()
        if stage == self.stage and now - self.printed < 30:
            return
        self.stage, self.printed = stage, now
        position = f"{run['state']}: {stage} {run['progress']:.0%}" if run["stage"] else run["state"]
        base.say("  ".join(filter(None, [position, rate(run), left])))
