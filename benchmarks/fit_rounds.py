"""Runs the trainers of `benchmarks.fit`: their environment, one process per trainer, and the rounds."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.participant import Job

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "benchmarks/peers/requirements.txt"
LONE_REQUIREMENTS = ROOT / "benchmarks/peers/requirements-alone.txt"
LAYOUTS_REQUIREMENTS = ROOT / "benchmarks/peers/requirements-layouts.txt"
OURS, OURS_FLOAT32, FLOOR = "featurewatch", "featurewatch-float32", "floor"
PEERS = {
    "dictionary-learning": "benchmarks.peers.dictionary_learning",
    "eai-sparsify": "benchmarks.peers.sparsify",
    "sae-lens": "benchmarks.peers.sae_lens",
}
OWN = "benchmarks.peers.ours"
MODULES = {OURS: OWN, OURS_FLOAT32: OWN, FLOOR: "benchmarks.peers.floor", **PEERS}


class Results(NamedTuple):
    """Of a run, by trainer."""

    seconds: dict[str, list[float]]
    """Seconds per step in every round"""
    quality: dict[str, dict[str, Any]]
    """The trainers' final answers; none for the floor"""


def peers_environment(
    folder: Path, requirements: Sequence[Path] = (REQUIREMENTS,), alone: Path = LONE_REQUIREMENTS
) -> Path:
    """The Python of an environment with the public trainers, created if it is missing or outdated.

    It sees this environment's packages, so that all trainers run on one build of torch; what it adds or needs in
    another version comes first. requirements: files with what is installed; alone: a file with what is installed
    without what it depends on.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = "\n".join(
        [sys.version, sysconfig.get_path("purelib"), *(file.read_text() for file in (*requirements, alone))]
    )
    stamp = folder / "made-of.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing the public trainers into {folder} (once, some minutes)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", python, "install"]
    pip = [*command, "--quiet", "--disable-pip-version-check", "--no-compile"]
    for file in requirements:
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", "-r", file], check=True)
    subprocess.run([*pip, "--no-deps", "-r", alone], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


class Runner:
    """A trainer's process and the pipe to it."""

    def __init__(self, name: str, python: Path, job: Job) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed below
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(job.threads),
            "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.peers", MODULES[name], json.dumps(asdict(job))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, cwd=ROOT, env=environment, text=True,
        )  # fmt: skip

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for the answer. Raises RuntimeError with the end of the log if the trainer has
        exited."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} ended; --peers leaves it out. Its last words:\n{self.log.read()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


def run_rounds(
    job: Job,
    peers: list[str],
    rounds: int,
    python: Path,
    say: Callable[[str], None],
    rates: dict[str, float] | None = None,
    encode: str | None = None,
) -> Results:
    """Run all trainers in turns, in every round, rotating the order.

    The first step of each is not timed: it makes what all later ones use. rates: learning rates that are not the
    trainers' own. encode: precision of our encoder's product; where it is not the job's, ours takes part once more
    with that of the job.
    """
    encode = None if encode == job.precision else encode
    names = [OURS, *([OURS_FLOAT32] if encode else []), FLOOR, *peers]
    sizes = [(job.steps - 1) * (r + 1) // rounds - (job.steps - 1) * r // rounds for r in range(rounds)]
    runners: dict[str, Runner] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    try:
        for name in names:
            rate = (rates or {}).get(OURS if name == OURS_FLOAT32 else name)
            own = replace(job, rate=rate, encode=encode if name == OURS else None)
            runners[name] = Runner(name, python if name in PEERS else Path(sys.executable), own)
        for name in names:
            runners[name].ask(steps=1)
        for r, size in enumerate(sizes):
            for name in [*names[r % len(names) :], *names[: r % len(names)]]:
                seconds[name].append(runners[name].ask(steps=size)["seconds"] / size)
            times = ", ".join(f"{name} {1000 * seconds[name][-1]:.0f}" for name in names)
            say(f"round {r + 1} of {rounds}, ms a step: {times}")
        quality = {name: runners[name].ask(evaluate=True) for name in names}
        del quality[FLOOR]
    finally:
        for runner in runners.values():
            runner.close()
    return Results(seconds, quality)
