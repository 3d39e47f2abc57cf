"""A run that is waited for: bars on a terminal, lines elsewhere."""

import time

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from featurewatch.service.cli import base
from featurewatch.service.client import Client
from featurewatch.service.client.types import Run

_STEADY_SECONDS, _STEADY_SHARE = 3.0, 0.02
"""Of a stage, before its speed tells when it will be over."""


def follow(client: Client, run: str, timeout: float | None) -> Run:
    """Wait for a run and show its progress on the error output: a bar on a terminal, else a line for each stage."""
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


def rate(run: Run) -> str:
    """What the stage does per second, e.g. `2,100 positions/s`."""
    speeds = {name: value for name, value in run["detail"].items() if name.endswith("_per_second")}
    return ", ".join(f"{float(v):,.0f} {name.removesuffix('_per_second')}/s" for name, v in speeds.items() if v)


class _Clock:
    """How long the stage that goes on will take yet, from how fast it went so far."""

    def __init__(self) -> None:
        self.stage, self.began, self.first = "", 0.0, 0.0

    def left(self, run: Run) -> str:
        """`about 40 s left`; empty while that cannot be said."""
        now, stage, done = time.monotonic(), run["stage"] or run["state"], run["progress"]
        if stage != self.stage:
            self.stage, self.began, self.first = stage, now, done
        passed, went = now - self.began, done - self.first
        if passed < _STEADY_SECONDS or went < _STEADY_SHARE or done >= 1:
            return ""
        return f"about {base.duration((1 - done) * passed / went)} left"


class _Bars:
    """A bar for each stage."""

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
    """A line for each stage, and every half minute."""

    def __init__(self) -> None:
        self.stage, self.said, self.clock = "", 0.0, _Clock()

    def __call__(self, run: Run) -> None:
        stage, left = run["stage"] or run["state"], self.clock.left(run)
        now = time.monotonic()
        if stage == self.stage and now - self.said < 30:
            return
        self.stage, self.said = stage, now
        now_at = f"{run['state']}: {stage} {run['progress']:.0%}" if run["stage"] else run["state"]
        base.say("  ".join(filter(None, [now_at, rate(run), left])))
