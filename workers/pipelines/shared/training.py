"""Training a dictionary on one checkpoint or several, in this process or in one per GPU."""

import math
import multiprocessing.process
import time
from collections.abc import Callable, Iterator
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

from featurewatch.workers.activations.models.loading import compute_dtype
from featurewatch.workers.activations.store import open_activations
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
"""Bytes of float32 activations that are shuffled together. Larger data is streamed window by window."""
PROGRESS_LINES = 10
"""How many progress lines a fit logs."""
ALIGNMENT_POSITIONS = 16_384
"""Positions used to align the sources of a shared decoder."""


class Members:
    """Checkpoints that are fitted together, the activation vectors of their sources side by side.

    Calling it with rows (sorted int64 [b]) returns [b, D] normalised float32, NaN where a checkpoint is not valid.
    """

    def __init__(self, members: list[Activations]) -> None:
        self.members = members
        widths = [(width, model) for model, part in enumerate(members) for width in part.widths]
        self.layout = Layout(tuple(w for w, _ in widths), tuple(m for _, m in widths))
        self.valid = torch.stack([part.valid for part in members]).any(0)
        """bool [n] valid in at least one checkpoint"""

    def __call__(self, rows: Tensor) -> Tensor:
        parts = []
        for member in self.members:
            x, valid = member(rows), member.valid[rows.cpu()]
            if not bool(valid.all()):
                x = x.masked_fill(~valid.to(x.device).unsqueeze(1), torch.nan)
            parts.append(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def read_ahead(self, rows: Tensor) -> None:
        """Read runs of RUN positions that begin at `rows` from disk in the background."""
        for member in self.members:
            member.opened.read_ahead(rows.numpy(), RUN)


def configuration(context: OnboardingContext, layout: Layout) -> FitConfig:
    """The family's options, for a fit of these sources."""
    options: dict[str, Any] = dict(context.crosscoder)
    dedicated = options.pop("dedicated")
    try:
        return FitConfig(
            **options | {"prefixes": tuple(options["prefixes"])},
            dedicated=(dedicated,) * layout.n_models if dedicated and layout.n_models > 1 else (),
            window=max(options["batch_size"], WINDOW_BYTES // (4 * layout.width)),
        )
    except ValueError as error:  # of options that depend on the number of checkpoints
        raise RunError("bad-crosscoder-options", f"{error} (fitting {layout.n_models} checkpoints)") from error


def train_dictionary(
    execution: Execution, context: OnboardingContext, members: Members, saved: Path, known: Tensor | None = None
) -> Crosscoder:
    """Fit on all members. Saves its state at `saved` regularly; a resumed fit gives the same numbers, bit for bit.

    known: [w, D] decoder rows of the last generation's features to start from, with enough latents for all of them.
    """
    config, device = configuration(context, members.layout), device_of(execution.settings)
    if known is not None:
        needed = config.designated + len(known) + sum(config.dedicated)
        config = replace(config, n_features=max(config.n_features, needed))
    rows = members.valid.nonzero().squeeze(1)
    world = execution.settings.fit_processes or max(1, torch.cuda.device_count() if device.type == "cuda" else 1)
    resumes = files.is_saved(saved)
    maps = _maps(members, rows) if config.decoder == "shared" and not resumes else ()
    if known is not None and not resumes:
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

    return _fit(members, config, device, state=state, maps=maps, on_step=on_step).model


def _fit(
    members: Members,
    config: FitConfig,
    device: torch.device,
    *,
    state: FitState | None,
    maps: tuple[Tensor, ...],
    on_step: Callable[[FitState], None],
    parallel: Parallel | None = None,
) -> FitState:
    rows = members.valid.nonzero().squeeze(1)
    return fit(
        lambda picked: members(rows[picked]),
        len(rows),
        members.layout,
        config,
        state=state,
        maps=maps,
        on_step=on_step,
        read_ahead=lambda runs: members.read_ahead(rows[runs]),
        parallel=parallel,
        compute_dtype=compute_dtype(device.type),
        device=device,
    )


def _maps(members: Members, rows: Tensor) -> tuple[Tensor, ...]:
    """P_s of a shared decoder, from positions where all sources are valid."""
    widths = members.layout.widths
    picked = rows[torch.linspace(0, len(rows) - 1, min(ALIGNMENT_POSITIONS, len(rows))).long()]
    x = torch.cat([members(part) for part in picked.split(BLOCK)])
    x = x[~x.isnan().any(1)]
    if len(x) < max(widths):
        raise RunError(
            "too-few-common-positions",
            f"a shared decoder needs at least {max(widths)} common positions (the width of its widest source); "
            f"there are {len(x)}; use a longer corpus or `decoder: per_source`",
        )
    parts = x.split(widths, 1)
    widest = parts[widths.index(max(widths))]
    return shared_maps([part.T @ widest for part in parts], widths)


class FitMonitor:
    """Reports the progress of a fit, and decides when to save it."""

    def __init__(self, execution: Execution, config: FitConfig, n: int) -> None:
        self.execution, self.config, self.batch = execution, config, min(config.batch_size, n)
        self.first, self.began, self.saved = 0, time.monotonic(), time.monotonic()

    def begin(self, step: int) -> None:
        if step:
            log.info("resuming the fit", step=step, steps=self.config.steps)
        self.first, self.began = step, time.monotonic()
        self.saved = self.began

    def __call__(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(
                "fit-diverged",
                f"the loss is {loss} at step {step}; use a learning rate below {self.config.learning_rate}",
            )
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = round((step - self.first) * self.batch / seconds, 1)
        if PROGRESS_LINES * step // self.config.steps > PROGRESS_LINES * (step - 1) // self.config.steps:
            log.info("fitting", step=step, loss=round(loss, 4), positions_per_second=rate)
        self.execution.progress(
            step / self.config.steps,
            step=step,
            steps=self.config.steps,
            loss=round(loss, 4),
            positions_per_second=rate,
        )

    def save_is_due(self) -> bool:
        now = time.monotonic()
        due = now - self.saved > self.execution.settings.save_seconds
        if due:
            self.saved = now
        return due


@dataclass(frozen=True)
class FitJob:
    """What a rank gets from the process that starts it."""

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
    """Fit on several processes, one per GPU. They divide the latents, or the positions if latents do not divide evenly.

    They are spawned, so this process may use a GPU too. It waits, reports, and kills them if the run must stop.
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
        cuda=device_of(execution.settings).type == "cuda",
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
        _listen(receiver, watch)  # a rank may have sent the reason, such as a loss of NaN
        killed = [-code for code in (p.exitcode for p in ranks.processes) if code and code < 0 and code != -SIGTERM]
        if killed:
            raise RunError(
                "fit-process-killed",
                f"a process of the fit was killed ({Signals(killed[0]).name}), often because memory ran out. Give the "
                "worker more memory, or the fit smaller batches, and retry the run: it resumes from its saved state",
            ) from error
        raise
    finally:
        for process in ranks.processes:
            process.kill()
            process.join()
        meeting.unlink(missing_ok=True)
    return files.load_state(saved, config, members.layout, device_of(execution.settings)).model


def _listen(receiver: Any, watch: FitMonitor) -> None:
    """Report the progress that rank 0 sent. Raises a RunError that a rank sent."""
    while receiver.poll():
        try:
            message = receiver.recv()
        except EOFError:  # all ranks have ended
            return
        if isinstance(message, RunError):
            raise message
        step, loss, began = message
        if began:
            watch.begin(step)
        else:
            watch(step, loss)


@contextmanager
def _allowed_children() -> Iterator[None]:
    """Allow child processes in a Celery worker.

    Celery replaces multiprocessing's process object by its own: a daemon, which may not have children, with a key that
    cannot be sent to them. These children end with the run, and torch ends them with this process.
    """
    current = multiprocessing.process.current_process()
    marks: dict[str, Any] = current._config  # type: ignore[attr-defined]
    original = dict(marks)
    marks.update(daemon=False, authkey=multiprocessing.process.AuthenticationString(bytes(original["authkey"])))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        marks.clear()
        marks.update(original)


def _rank(rank: int, job: FitJob, sender: Any) -> None:
    """One process of the fit. Sends a RunError to the process that started it."""
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
    backend, meeting = "nccl" if job.cuda else "gloo", f"file://{job.meeting}"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=job.world)
    parts = []
    for folder, hooks, normaliser in zip(job.folders, job.hook_points, job.normalisers, strict=True):
        parts.append(Activations(open_activations(folder, hook_points=hooks), hooks, device))
        parts[-1].normalise_by(normaliser)
    members = Members(parts)
    even = job.config.n_features % job.world == 0
    parallel = Parallel(latent=job.world) if even else Parallel(data=job.world)
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

    maps = tuple(p.to(device) for p in job.maps)
    _fit(members, job.config, device, state=state, maps=maps, on_step=on_step, parallel=parallel)
    dist.destroy_process_group()
