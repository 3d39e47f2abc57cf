"""The process of each trainer of `benchmarks.fit`: batches come from memory, commands over a pipe.

A trainer runs its own loop and requests batches. The loop blocks at each batch that no command has released, so that
trainers take turns with all of their own work per step, and nothing else is timed. Commands and answers are JSON
objects, one per line: {"steps": n} -> {"seconds": s}, {"evaluate": true} -> quality.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions [b, D] -> reconstruction [b, D] and the code [b, m], zero where a latent is silent."""


class Trained(NamedTuple):
    """A trained model, and its description for the report."""

    evaluate: Evaluate
    package: str
    """with its version"""
    what: str
    rate: float
    """learning rate"""


class Done(Exception):  # noqa: N818
    """Raised in a trainer's loop when there are no more steps, to skip the work after a fit."""


@dataclass(frozen=True)
class Job:
    """The part of a job that all trainers share."""

    folder: str
    widths: tuple[int, ...]
    latents: int
    k: int
    batch: int
    steps: int
    positions: int
    """Training positions; the rest of the file is held out"""
    dead_after: int
    """Positions after which a silent latent counts as dead, for trainers that revive such"""
    seed: int
    threads: int
    device: str
    precision: str = "float32"
    """`bfloat16`: of the products, by each trainer's own option for it"""
    encode: str | None = None
    """Precision of our encoder's product where it is another one"""
    rate: float | None = None
    """Learning rate; None: the trainer's own"""

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def width(self) -> int:
        """D"""
        return sum(self.widths)


class Participant:
    """A trainer's side of the pipe. scale: what the trainer wants its activations multiplied by."""

    def __init__(self, job: Job, answers: TextIO) -> None:
        self.job, self.answers = job, answers
        torch.set_num_threads(self.job.threads)
        torch.manual_seed(self.job.seed)
        folder = Path(self.job.folder)
        # Copy on write: all processes share one copy of the file's pages.
        every = torch.from_numpy(np.load(folder / "activations.npy", mmap_mode="c"))
        if self.job.device != "cpu":
            every = every.to(self.job.device)
        self.x, self.held_out = every[: self.job.positions], every[self.job.positions :]
        self.rows = torch.from_numpy(np.load(folder / "rows.npy")).to(self.job.device)
        self.scale, self.step, self.left, self.began = 1.0, 0, 0, 0.0

    def run(self, train: Callable[["Participant"], "Trained | None"]) -> None:
        """Take part: train, then answer for the quality of what was trained; None has no quality."""
        float(self.x.sum())  # the file's pages count as memory of every process: before the fit, not in it
        before = _memory(self.job.device, reset=True)
        trained = train(self)
        self._settle()
        memory = _memory(self.job.device) - before
        self._receive()
        if trained is None:
            self._answer()
            return
        about = {"package": trained.package, "what": trained.what, "rate": trained.rate}
        self._answer(**self._quality(trained.evaluate), memory=memory, **about)

    def next(self) -> Tensor:
        """The next batch [b, D], in memory that is the caller's. Waits for leave; Done: there is none."""
        step = self.allow()
        batch = self.x.index_select(0, self.rows[step])
        return batch.mul_(self.scale) if self.scale != 1.0 else batch

    def allow(self) -> int:
        """Wait for leave to take the next step, and give its number. Done: it was the last."""
        if self.left == 0:
            self._settle()
            if self.step == self.job.steps:
                raise Done
            self.left = int(self._receive()["steps"])
            self.began = time.perf_counter()
        self.left -= 1
        self.step += 1
        return self.step - 1

    def batches(self) -> Iterator[Tensor]:
        """All batches, for a loop that takes an iterator."""
        while True:
            yield self.next()

    def until_done(self, loop: Callable[[], Any]) -> None:
        """Run a loop until the batches are used up."""
        with suppress(Done):
            loop()

    def _settle(self) -> None:
        if self.began:
            self._synchronize()
            self._answer(seconds=time.perf_counter() - self.began)
        self.began = 0.0

    def _synchronize(self) -> None:
        if self.job.device != "cpu":
            torch.cuda.synchronize()

    @torch.no_grad()
    def _quality(self, evaluate: Evaluate) -> dict[str, Any]:
        """FVU of each source, L0 and the share of silent latents over the positions held out."""
        widths, batch = list(self.job.widths), self.job.batch
        mean = self.held_out.mean(0)
        left, total = (torch.zeros(len(widths), dtype=torch.float64) for _ in range(2))
        fired = torch.zeros(self.job.latents, dtype=torch.int64, device=self.job.device)
        n = len(self.held_out) // batch * batch
        for x in self.held_out[:n].split(batch):
            found, code = evaluate(x * self.scale)
            error = found.float() / self.scale - x
            left += torch.tensor([float(e.square().sum()) for e in error.split(widths, 1)])
            total += torch.tensor([float(e.square().sum()) for e in (x - mean).split(widths, 1)])
            fired += (code != 0).sum(0)
        return {
            "fvu": (left / total).tolist(),
            "l0": float(fired.sum()) / n,
            "dead": float((fired == 0).double().mean()),
        }

    def _receive(self) -> dict[str, Any]:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)  # the benchmark has ended
        return json.loads(line)

    def _answer(self, **answer: Any) -> None:
        self.answers.write(json.dumps(answer) + "\n")


def _memory(device: str, *, reset: bool = False) -> float:
    """Peak memory so far in MB, of the process or, on a GPU, of torch there. reset: start from what is in use now."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "linux":
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    import resource  # noqa: PLC0415  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
