"""Training a dictionary: over one checkpoint or several together, in this process or one for each GPU."""

import math
import multiprocessing.process
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

import structlog
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from featurewatch.workers.activations import open_activations
from featurewatch.workers.activations.models import compute_dtype
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import FitState, fit, start_from
from featurewatch.workers.crosscoder.fit.order import RUN
from featurewatch.workers.crosscoder.fit.sharding import collected, dealt
from featurewatch.workers.crosscoder.model import Crosscoder, Normaliser, shared_maps
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.sources import BLOCK, Activations

log = structlog.get_logger("featurewatch.worker")

WINDOW_BYTES = 2**31
"""Activations (as float32) that are shuffled among each other. More is streamed: a step needs no more than that."""
TOLD = 10
"""How often the log says how far a fit is."""
PAIRED = 16_384
"""Positions that the maps of a shared decoder are found on."""


class Members:
    """Checkpoints that are fitted together, each with its sources: one activation vector beside the other.

    Called with rows (sorted int64 [b]) it gives [b, D] normalised float32 with NaN where a checkpoint is not valid.
    """

    def __init__(self, members: list[Activations]) -> None:
        self.members = members
        widths = [(width, model) for model, part in enumerate(members) for width in part.widths]
        self.layout = Layout(tuple(w for w, _ in widths), tuple(m for _, m in widths))
        self.valid = torch.stack([part.valid for part in members]).any(0)
        """bool [n]: valid in one of them at least"""

    def __call__(self, rows: Tensor) -> Tensor:
        parts = []
        for member in self.members:
            x, valid = member(rows), member.valid[rows.cpu()]
            if not bool(valid.all()):
                x = x.masked_fill(~valid.to(x.device).unsqueeze(1), torch.nan)
            parts.append(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def read_ahead(self, rows: Tensor) -> None:
        """Have runs of RUN positions, which begin at rows, read from disk while the fit goes on."""
        for member in self.members:
            member.opened.read_ahead(rows.numpy(), RUN)


def configuration(context: OnboardingContext, layout: Layout) -> FitConfig:
    """The family's options for a fit of these sources."""
    options: dict[str, Any] = dict(context.crosscoder)
    dedicated = options.pop("dedicated")
    try:
        return FitConfig(
            **options | {"prefixes": tuple(options["prefixes"])},
            dedicated=(dedicated,) * layout.n_models if dedicated and layout.n_models > 1 else (),
            window=max(options["batch_size"], WINDOW_BYTES // (4 * layout.width)),
        )
    except ValueError as error:  # what only shows when the number of checkpoints is known
        raise RunError("bad-crosscoder-options", f"{error}; {layout.n_models} checkpoints are fitted") from error


def train_dictionary(
    execution: Execution, context: OnboardingContext, members: Members, saved: Path, known: Tensor | None = None
) -> Crosscoder:
    """Fit on all members; saves itself at `saved` as it goes, and goes on from there bit by bit.

    known: [w, D] what features of the last generation write into all sources: the fit starts from them, with as many
    latents as it takes to hold them.
    """
    config, device = configuration(context, members.layout), device_of(execution)
    if known is not None:
        held = config.designated + len(known) + sum(config.dedicated)
        config = replace(config, n_features=max(config.n_features, held))
    rows = members.valid.nonzero().squeeze(1)
    world = execution.settings.fit_processes or max(1, torch.cuda.device_count() if device.type == "cuda" else 1)
    goes_on = files.is_saved(saved)
    maps = _maps(members, rows) if config.decoder == "shared" and not goes_on else ()
    if known is not None and not goes_on:
        files.save_state(saved, start_from(known, config, members.layout, maps=maps, device=device))
    log.info("fit", features=config.n_features, k=config.k, steps=config.steps, positions=len(rows), processes=world)
    watch = FitMonitor(execution, config, len(rows))
    if world > 1:
        return _on_processes(execution, members, config, maps, saved, world, watch)
    state = files.load_state(saved, config, members.layout, device) if saved.exists() else None
    watch.begin(state.step if state else 0)

    def on_step(state: FitState) -> None:
        execution.check()
        watch(state.step, state.losses[-1])
        if watch.save_is_due():
            files.save_state(saved, state)

    state = fit(
        lambda picked: members(rows[picked]),
        len(rows),
        members.layout,
        config,
        state=state,
        maps=maps,
        on_step=on_step,
        read_ahead=lambda runs: members.read_ahead(rows[runs]),
        compute_dtype=compute_dtype(device.type),
        device=device,
    )
    return state.model


def _maps(members: Members, rows: Tensor) -> tuple[Tensor, ...]:
    """P_s of a shared decoder, from positions at which all sources are valid."""
    widths = members.layout.widths
    picked = rows[torch.linspace(0, len(rows) - 1, min(PAIRED, len(rows))).long()]
    x = torch.cat([members(part) for part in picked.split(BLOCK)])
    x = x[~x.isnan().any(1)]
    if len(x) < max(widths):
        raise RunError(
            "too-few-common-positions",
            f"a shared decoder aligns its sources at positions that all of them have; there are {len(x)}, fewer than "
            f"the widest source is wide ({max(widths)}); use a longer corpus or `decoder: per_source`",
        )
    parts = x.split(widths, 1)
    widest = parts[widths.index(max(widths))]
    return shared_maps([part.T @ widest for part in parts], widths)


class FitMonitor:
    """Reports a fit's progress, and says when it is to be saved."""

    def __init__(self, execution: Execution, config: FitConfig, n: int) -> None:
        self.execution, self.config, self.batch = execution, config, min(config.batch_size, n)
        self.first, self.began, self.saved = 0, time.monotonic(), time.monotonic()

    def begin(self, step: int) -> None:
        if step:
            log.info("the fit goes on", step=step, steps=self.config.steps)
        self.first, self.began = step, time.monotonic()
        self.saved = self.began

    def __call__(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(
                "fit-diverged",
                f"the loss is {loss} at step {step}: lower the learning rate ({self.config.learning_rate})",
            )
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = round((step - self.first) * self.batch / seconds, 1)
        if TOLD * step // self.config.steps > TOLD * (step - 1) // self.config.steps:
            log.info("fit so far", step=step, loss=round(loss, 4), positions_per_second=rate)
        self.execution.progress(step / self.config.steps, step=step, steps=self.config.steps, loss=round(loss, 4),
                                positions_per_second=rate)  # fmt: skip

    def save_is_due(self) -> bool:
        now = time.monotonic()
        due = now - self.saved > self.execution.settings.save_seconds
        if due:
            self.saved = now
        return due


@dataclass(frozen=True)
class FitJob:
    """What a rank needs to know, as it is sent to its process."""

    folders: list[Path]
    hook_points: list[list[str]]
    normalisers: list[Normaliser]
    config: FitConfig
    maps: tuple[Tensor, ...]
    saved: Path
    save_seconds: float
    world: int
    meeting: Path
    cuda: bool
    threads: int


def _on_processes(
    execution: Execution,
    members: Members,
    config: FitConfig,
    maps: tuple[Tensor, ...],
    saved: Path,
    world: int,
    watch: FitMonitor,
) -> Crosscoder:
    """Fit on several processes, one for each GPU, which share the latents (the positions where they can't be shared).

    They are spawned, so this one may hold a GPU too: it waits, reports, and ends them when the run is to stop.
    """
    saved.parent.mkdir(parents=True, exist_ok=True)
    meeting = saved.with_suffix(".meeting")
    meeting.unlink(missing_ok=True)
    job = FitJob(
        folders=[member.opened.path for member in members.members],
        hook_points=[member.hook_points for member in members.members],
        normalisers=[Normaliser(*(t.cpu() for t in member.normalised())) for member in members.members],
        config=config,
        maps=tuple(p.cpu() for p in maps),
        saved=saved,
        save_seconds=execution.settings.save_seconds,
        world=world,
        meeting=meeting,
        cuda=device_of(execution).type == "cuda",
        threads=max(1, torch.get_num_threads() // world),
    )
    with _allowed_children():
        receiver, sender = processes.get_context("spawn").Pipe(duplex=False)
        ranks = processes.start_processes(_rank, (job, sender), nprocs=world, join=False, start_method="spawn")
    sender.close()
    try:
        while not ranks.join(timeout=0.2):
            execution.check()
            _listen(receiver, watch)
    except (processes.ProcessExitedException, processes.ProcessRaisedException) as error:
        _listen(receiver, watch)  # what went wrong may have been told: a loss that is no number
        killed = [-code for code in (p.exitcode for p in ranks.processes) if code and code < 0 and code != -SIGTERM]
        if killed:
            raise RunError(
                "fit-process-killed",
                f"a process of the fit was ended from outside ({Signals(killed[0]).name}), often for want of memory: "
                "give the worker more or the fit smaller batches, and retry the run; it goes on where it was saved",
            ) from error
        raise
    finally:
        for process in ranks.processes:
            process.kill()
            process.join()
        meeting.unlink(missing_ok=True)
    return files.load_state(saved, config, members.layout, device_of(execution)).model


def _listen(receiver: Any, watch: FitMonitor) -> None:
    """Report what rank 0 has said so far; raises what a rank could not go on for."""
    while receiver.poll():
        try:
            heard = receiver.recv()
        except EOFError:  # all of them have ended
            return
        if isinstance(heard, RunError):
            raise heard
        step, loss, began = heard
        if began:
            watch.begin(step)
        else:
            watch(step, loss)


@contextmanager
def _allowed_children() -> Iterator[None]:
    """Celery puts a process object of its own in the place of multiprocessing's, marked as a daemon that may have no
    children, with a key that can't be sent to any. Ours end with the run, and with this process (torch sees to it)."""
    current = multiprocessing.process.current_process()
    marks: dict[str, Any] = current._config  # type: ignore[attr-defined]
    theirs = dict(marks)
    marks.update(daemon=False, authkey=multiprocessing.process.AuthenticationString(bytes(theirs["authkey"])))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        marks.clear()
        marks.update(theirs)


def _rank(rank: int, job: FitJob, sender: Any) -> None:
    """One process of the fit. It tells the one that started it what a run is to fail with."""
    try:
        _fit_rank(rank, job, sender)
    except RunError as error:
        sender.send(error)
        raise


def _fit_rank(rank: int, job: FitJob, sender: Any) -> None:
    torch.set_num_threads(job.threads)
    device = torch.device("cuda", rank) if job.cuda else torch.device("cpu")
    if job.cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if job.cuda else "gloo", init_method=f"file://{job.meeting}", rank=rank,
                            world_size=job.world)  # fmt: skip
    opened = [open_activations(folder, hook_points=hooks) for folder, hooks in zip(job.folders, job.hook_points,
                                                                                   strict=True)]  # fmt: skip
    parts = [Activations(part, hooks, device) for part, hooks in zip(opened, job.hook_points, strict=True)]
    for part, normaliser in zip(parts, job.normalisers, strict=True):
        part.normalise_by(normaliser)
    members = Members(parts)
    even = job.config.n_features % job.world == 0
    parallel = Parallel(latent=job.world) if even else Parallel(data=job.world)
    rows = members.valid.nonzero().squeeze(1)
    state = None
    if job.saved.exists():
        state = dealt(files.load_state(job.saved, job.config, members.layout, device), parallel)
    if rank == 0:
        sender.send((state.step if state else 0, 0.0, True))
    last = time.monotonic()

    def on_step(state: FitState) -> None:
        nonlocal last
        if rank == 0:
            sender.send((state.step, state.losses[-1], False))
        due = time.monotonic() - last > job.save_seconds or state.step == job.config.steps
        if parallel.total(float(due and rank == 0)):  # rank 0's clock decides for all
            last = time.monotonic()
            whole = collected(state, parallel)
            if rank == 0:
                files.save_state(job.saved, whole)

    fit(
        lambda picked: members(rows[picked]),
        len(rows),
        members.layout,
        job.config,
        state=state,
        maps=tuple(p.to(device) for p in job.maps),
        on_step=on_step,
        read_ahead=lambda runs: members.read_ahead(rows[runs]),
        parallel=parallel,
        compute_dtype=compute_dtype(device.type),
        device=device,
    )
    dist.destroy_process_group()
