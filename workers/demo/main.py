"""The demo's command line. Exit code 0 if every check passes, 1 if one fails or the demo cannot run."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featurewatch.service.cli.base import SafeConsole
from featurewatch.service.client import Client, ClientError
from featurewatch.workers.demo.installation import Installation, NoServiceError
from featurewatch.workers.demo.models import NAME, NoModelError, base_model, save_ablated, save_rounded
from featurewatch.workers.demo.outcome import DemoOutcome, assess
from featurewatch.workers.demo.receiver import Receiver
from featurewatch.workers.demo.selection import Edit, TooFewFeaturesError, choose
from featurewatch.workers.demo.show import Show
from featurewatch.workers.errors import RunError

FAMILY = "smollm2"
RELEASES = {
    "v1": "the model",
    "v2": "v1 saved again in bfloat16: the same weights",
    "v3": "v1 with the directions of 8 features removed",
}
WEBHOOK_SECONDS = 30.0
LOG_WIDTH = 120


@dataclass(frozen=True)
class Plan:
    """Sizes that take about five minutes on two idle cores."""

    hook_point: str = "resid_post.8"
    """In the lower middle: the forward pass stops there, so a higher one costs more"""
    corpus: dict[str, Any] = field(
        default_factory=lambda: {"uri": "builtin:python-docs", "max_documents": 380, "context_length": 128}
    )
    crosscoder: dict[str, Any] = field(
        default_factory=lambda: {"n_features": 2048, "k": 32, "steps": 1000, "batch_size": 2048}
    )
    policy: dict[str, Any] = field(default_factory=lambda: {"max_norm_ratio": 3.0})
    """At one position in fifty this model's stream is 4 to 8 times as long as usual, along one direction, whatever the
    text (attention sinks). The default of 10 would include them, and they would be 40% of the variance"""


class DemoError(RuntimeError):
    """A release was not judged."""


@dataclass
class Demo:
    """The demo, against one installation."""

    plan: Plan
    seed: int
    folder: Path
    base: Path
    show: Show
    installation: Installation
    client: Client
    receiver: Receiver
    seconds: dict[str, Any] = field(default_factory=dict)

    def play(self) -> DemoOutcome:
        """Register the releases one after the other, and assess the verdicts."""
        self._set_up_family()
        v2, v3 = self.folder / "v2", self.folder / "v3"
        with ThreadPoolExecutor(1) as pool:  # makes a release while the one before is being judged
            rounding = pool.submit(save_rounded, self.base, v2)
            self._release("v1", self.base, parent=None)
            rounding.result()
            edits = self._choose()
            removed = ", ".join(f"F{edit.feature} {edit.alpha:.0%}" for edit in edits)
            self.show.say(f"features chosen with seed {self.seed}, to be removed from v3: {removed}")
            directions = self._decoder[[edit.feature for edit in edits]]
            editing = pool.submit(save_ablated, self.base, v3, directions, [edit.alpha for edit in edits])
            self._release("v2", v2, parent="v1")
            editing.result()
        self._release("v3", v3, parent="v2")
        return self._assess(edits)

    def _set_up_family(self) -> None:
        crosscoder = self.plan.crosscoder | {"seed": self.seed}
        self.client.create_family(
            FAMILY, [self.plan.hook_point], corpus=self.plan.corpus, crosscoder=crosscoder, policy=self.plan.policy
        )
        secret = self.client.create_webhook(self.receiver.url)["secret"]
        self.receiver.trust(secret)
        for status in ("suppressed", "absent"):
            condition: dict[str, Any] = {"kind": "status_count", "status": status, "at_least": 1}
            self.client.create_alert_rule(f"a feature is {status}", condition, family=FAMILY)

    def _release(self, name: str, folder: Path, parent: str | None) -> None:
        uri = folder.resolve().as_uri()
        self.show.say(f"registering {name}: {RELEASES[name]}")
        run = self.client.register(FAMILY, name=name, uri=uri, parent=parent)["run"]
        assert run is not None  # the family is new
        with self.show.following(name) as follower:
            run = self.client.wait(run["id"], on_progress=follower, interval=0.3)
        self.seconds[name] = run["seconds"]
        if run["state"] != "succeeded":
            reason = f": {run['error']['title']}: {run['error']['detail']}" if run["error"] else ""
            raise DemoError(f"{name} was not judged: the run {run['state']}{reason}")
        if self.show.console.is_terminal:
            took = sum(run["seconds"].values())
            self.show.say(f"{name}: judged in {took:.0f} s")

    def _choose(self) -> list[Edit]:
        rows = sorted(self.client.features(FAMILY, checkpoint="v1"), key=lambda row: int(row["id"][1:]))
        fitted = self.installation.fitted("v1", self.plan.hook_point)
        self._decoder = fitted.decoder
        if len(rows) != len(self._decoder):
            raise DemoError(f"v1 has {len(rows)} features but {len(self._decoder)} decoder rows")
        readability = [row["readability"] or 0.0 for row in rows]
        rates = [row["firing_rate"] for row in rows]
        return choose(self._decoder, rates, readability, fitted.energy_share.numpy(), seed=self.seed)

    def _assess(self, edits: Sequence[Edit]) -> DemoOutcome:
        rows = {name: list(self.client.features(FAMILY, checkpoint=name)) for name in RELEASES}
        alerts = {
            name: [alert["summary"] for alert in self.client.alerts(family=FAMILY, checkpoint=name)]
            for name in RELEASES
        }
        wanted = {("checkpoint.judged", name) for name in RELEASES} | {("alert.raised", "v3")}
        missing = self.receiver.wait_for(wanted, WEBHOOK_SECONDS)
        outcome = assess(edits, rows, alerts, self.receiver.events, sorted(missing), same="v2", edited="v3")
        quality = {name: self.client.checkpoint(FAMILY, name)["quality"] for name in RELEASES}
        outcome.about = {"model": NAME, "seed": self.seed, "plan": asdict(self.plan), "quality": quality}
        return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # the data folder is private
    # With --json the tables go to standard error, so that standard output is only the object.
    console = SafeConsole(stderr=options.json, highlight=False)
    show = Show(console if console.is_terminal else SafeConsole(stderr=options.json, highlight=False, width=LOG_WIDTH))
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)  # else the service would outlive the demo
    try:
        outcome = _run(options, show)
    except KeyboardInterrupt:
        show.say("stopped")
        sys.exit(130)
    except (DemoError, NoModelError, NoServiceError, TooFewFeaturesError, ClientError, RunError) as error:
        show.console.print(f"[red]The demo failed:[/] {error}", markup=True, highlight=False)
        sys.exit(1)
    sys.exit(0 if outcome.passed else 1)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, show: Show) -> DemoOutcome:
    began = time.monotonic()
    base = base_model(options.cache.expanduser().resolve(), show.say)
    set_up = time.monotonic() - began
    with ExitStack() as stack:
        folder = stack.enter_context(_data_folder(options.data_dir, options.keep))
        receiver = stack.enter_context(Receiver())
        show.say(f"starting the service in {folder}")
        installation = stack.enter_context(Installation(folder, [folder, base.parent], port=options.port))
        client = stack.enter_context(Client(installation.url))
        show.say(f"the service is at {installation.url}")
        plan = Plan(hook_point=options.hook_point)
        demo = Demo(plan, options.seed, folder, base, show, installation, client, receiver)
        outcome = demo.play()
        total = time.monotonic() - began
        outcome.seconds = demo.seconds | {"set_up": round(set_up, 1), "total": round(total, 1)}
        show.outcome(outcome, RELEASES)
        show.say(f"finished in {total - set_up:.0f} s, after {set_up:.0f} s of setup")
        _print_next_steps(show, outcome, installation, folder / "v3", kept=options.keep)
        if options.json:
            sys.stdout.write(json.dumps(outcome.as_json()) + "\n")
            sys.stdout.flush()
        if options.keep:
            installation.wait()
    return outcome


def _print_next_steps(show: Show, outcome: DemoOutcome, installation: Installation, v3: Path, *, kept: bool) -> None:
    worst = min(outcome.planted, key=lambda each: each.expected_ratio)
    if not kept:
        show.say("to explore the results, run: featurewatch demo --keep")
        return
    # `make demo` does not put the command on PATH.
    command = "featurewatch" if shutil.which("featurewatch") else f"{Path(sys.executable).parent}/featurewatch"
    show.say(f"""
The service runs until Ctrl-C. Explore the results in a browser:
  {installation.url}/families/{FAMILY}/checkpoints/v3
or in another terminal. The last command is the gate of a CI job, and fails:
  export FEATUREWATCH_URL={installation.url}
  {command} report {FAMILY} v3
  {command} features {FAMILY} --checkpoint v3 --status absent --status suppressed
  {command} feature {FAMILY} {worst.feature}
  {command} checkpoint register {FAMILY} v3 {v3.resolve().as_uri()} --gate default""")


@contextmanager
def _data_folder(chosen: Path | None, keep: bool) -> Iterator[Path]:
    """The chosen folder, or a temporary one that is removed unless the service keeps running."""
    if chosen is not None:
        folder = chosen.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DemoError(f"{folder} is not empty; the demo needs an empty folder")
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="featurewatch-demo-")).resolve()
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="featurewatch demo",
        description="Judge three releases of a real language model, one of them edited.",
        epilog="Exit code 0: every check passed. 1: a check failed, or the demo could not run.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the edits and of the fit")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument(
        "--keep", action="store_true", help="keep the service running until Ctrl-C, and its data afterwards"
    )
    parser.add_argument("--data-dir", type=Path, help="an empty folder for the installation (default: a temporary one)")
    parser.add_argument("--port", type=int, default=0, help="port of the service (default: a free one)")
    parser.add_argument(
        "--hook-point", default=Plan.hook_point, help="hook point to read the model at (default: %(default)s)"
    )
    default_cache = Path.home() / ".cache" / "featurewatch"
    parser.add_argument(
        "--cache", type=Path, default=default_cache, help="folder that caches the model (default: %(default)s)"
    )
    return parser
