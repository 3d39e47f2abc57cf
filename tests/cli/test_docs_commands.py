"""Every command and every piece of Python in README and docs, run in the order of the pages.

They meet a live embedded service with a worker that reads real, tiny models. What a page says of `hf://org/model@v1`,
of ports and of ids is exchanged for what there is here (`Reader.exchanges`); what cannot run in a test is in `NOT_RUN`.
Programs that would run for minutes or change this machine only say what they would do (`Reader.try_out`).
"""

import argparse
import json
import os
import re
import shlex
import sqlite3
import string
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import chdir, closing, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import pytest

from featurewatch.service.client import ApiError, Client
from featurewatch.service.webhooks.schemas import TEST_EVENT, EventType
from tests.cli.blocks import Block, blocks, mentions
from tests.cli.live import Up, within
from tests.unit.activations.tiny import save_checkpoint
from tests.workers.receivers import Receiver

ROOT = Path(__file__).parents[2]
FIRST = ["README.md", "docs/guide-researcher.md", "docs/guide-ci.md", "docs/guide-platform.md", "docs/api.md"]
PAGES = FIRST + sorted({str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")} - {*FIRST, "docs/cli.md"})
"""docs/cli.md is made from the help of each command, and shows usage lines."""

NOT_RUN = {
    "docker": "needs docker; tests/unit/test_compose.py reads the compose file",
    "rsync": "is not on every machine",
    ".": "changes the shell that it is typed into",
    "from sae_lens": "runs in tests/api/test_dictionaries.py, whose environment has these tools",
}
COMPOSE = "docker compose exec api featurewatch"
"""Runs in the API's container what runs here as it is."""
PROGRAMS = {"featurewatch", "curl", "cp", "make", "pip", "python"}
WORDS = frozenset(PROGRAMS | {begin for begin in NOT_RUN if " " not in begin})
SMALL = (
    "--hook-point resid_post.0 --hook-point resid_post.2 --documents 16 --context 48 --features 48 --k 4 --steps 20 "
    "--batch-size 256 --seed 0"
)
BODY = {
    "hook_points": ["resid_post.0", "resid_post.2"],
    "corpus": {"max_documents": 16, "context_length": 48},
    "crosscoder": {"n_features": 48, "k": 4, "steps": 20, "batch_size": 256, "seed": 0},
}
OF_A_REFIT = {"ended_features", "ended_watched"}
"""Fields of an event that come only with what this test has no time for."""


class Reader:
    """Somebody who follows the pages, in a folder of their own."""

    def __init__(self, up: Up, models: Path, folder: Path, receiver: Receiver) -> None:
        self.up, self.folder, self.client = up, folder, Client(up.url)
        self.variables = {"TAG": "v2"}
        self.names: dict[str, Any] = {}
        """what the page's Python has made"""
        self.skipped: set[str] = set()
        self.exchanges = [
            (r"family create (\w+) --hook-point .*", rf"family create \1 {SMALL}"),
            (r'"hook_points": \["resid_post.12"\]', json.dumps(BODY)[1:-1]),
            (r"hf://HuggingFaceTB/SmolLM2-135M-Instruct", f"file://{models}/v2"),
            (r"hf://HuggingFaceTB/SmolLM2-135M", f"file://{models}/v1"),
            (r"hf://org/model@", f"file://{models}/"),
            (r"resid_post\.1[02]\b", "resid_post.0"),
            (r"resid_post\.20\b", "resid_post.2"),
            (r"(http://127\.0\.0\.1:8000|https://featurewatch\.example|(?<=curl -s )localhost:8000)", up.url),
            (r"(?<=curl -si )localhost:8000|(?<=')localhost:8000", up.url),
            (r"https://(ci\.example\.com|hooks\.slack\.com)/[\w/]+", receiver.url),
            (r'key="fw_\.\.\."', 'key=""'),
            (r"--splits 16", "--splits 1 --null halves"),
            (r'"nulls": \[.*\], "splits": 16', '"nulls": ["repeat"]'),
            (r"\bsmollm2\b", "assistant"),
            (r"\bF704\b", "F42"),
            (r"file:///\.\.\./", f"file://{models}/"),
            (r"\.env\.example", f"{ROOT}/.env.example"),
            (r"featurewatch-data/", f"{up.where['data_dir']}/"),
            (r"/(?:var/lib|backup)/(?=\S|$)", f"{folder}/"),
            (r"/srv/models", str(models)),
            (r" @ git\+https://github\.com/featurewatch/featurewatch@v[\d.]+", ""),
            (r"\b(run|alt|whk|key)_\.\.\.", lambda found: self.newest(found[1])),
        ]

    def newest(self, prefix: str) -> str:
        """Id of the newest of its kind, which is what a reader of the page has just made or seen."""
        if prefix == "alt":
            return next(row["id"] for row in self.client.alerts() if row["state"] != "resolved")
        listed = {"run": self.client.runs, "whk": self.client.webhooks, "key": self.client.keys}[prefix]
        return next(iter(listed()))["id"]

    def exchanged(self, text: str) -> str:
        """A piece of a page with what is here in place of what it names."""
        for pattern, here in self.exchanges:
            text = re.sub(pattern, here, text)
        return text

    def turn_to_a_page(self) -> None:
        """Each page starts from scratch: no signature, nothing under way, no Python of another page."""
        self.names = {}
        for signature in ("refusal", "past"):
            try:
                self.client.delete_signature("assistant", signature)
            except ApiError as error:
                assert error.status == 404, error
        for state in ("queued", "running"):
            for run in list(self.client.runs(state=state)):
                try:
                    self.client.cancel(run["id"])
                except ApiError as error:  # it may have ended meanwhile
                    assert error.status == 409, error

    def read(self, block: Block) -> None:
        """Do what a block says; AssertionError, or what it raises, where that does not work."""
        if begin := next((begin for begin in NOT_RUN if f"{block.text} ".startswith(f"{begin} ")), None):
            self.skipped.add(begin)
            return
        match block.kind:
            case "assignment":
                name, _, value = self.exchanged(block.text).partition("=")
                self.variables[name] = value
            case "command":
                self.run(block.text)
            case "python":
                with mock.patch.dict(os.environ, {"FEATUREWATCH_URL": self.up.url}):
                    exec(compile(self.exchanged(block.text), block.place, "exec"), self.names)
            case "json":
                rows = block.text.strip().split("\n{")  # one document, or one a line
                assert all(json.loads("{" * (row is not rows[0]) + row) for row in rows)
            case "toml":
                tomllib.loads(block.text)
                (self.folder / "gate.toml").write_text(block.text, encoding="utf-8")

    def run(self, line: str) -> None:
        """Run a command, in this process; it must end well, or as a gate may."""
        line = self.exchanged(string.Template(line).safe_substitute(self.variables))
        program, *arguments = shlex.split(line, comments=True)
        if program == "curl":
            curl(arguments)
            return
        if program == "cp":
            subprocess.run([program, *arguments], cwd=self.folder, check=True)
            return
        if program != "featurewatch":
            try_out(program, arguments)
            return
        if arguments[0] == "up":
            self.start(arguments[1:])
            return
        # Into an installation of its own: the service's is not to be touched while it runs.
        other = arguments[:2] in (["db", "restore"], ["db", "copy"])
        data = self.folder / arguments[1] if other else self.up.where["data_dir"]
        done = within(*arguments, env={"FEATUREWATCH_URL": self.up.url, "FEATUREWATCH_DATA_DIR": str(data)})
        assert done.returncode in ((0, 1) if "--gate" in arguments else (0,)), f"{line}: {done.stderr or done.stdout}"

    def start(self, arguments: list[str]) -> None:
        """Start another service, until it answers."""
        (self.folder / "other").mkdir(exist_ok=True)
        # The page's own key was made at the service that runs.
        own = {"FEATUREWATCH_DATA_DIR": str(self.folder / "other" / "data")}
        assert within("key", "create", "admin", "--scope", "admin", env=own).returncode == 0
        up = Up(self.folder / "other", *arguments)
        assert httpx2.get(f"{up.url}/healthz", timeout=30).status_code == 200
        assert up.stop() == 0


def try_out(program: str, arguments: list[str]) -> None:
    """Have make and pip say what they would do, and a benchmark what it may be asked."""
    if program == "python" and arguments[0] != "-m":
        command = [sys.executable, arguments[0], "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert all(option in done.stdout for option in arguments[1:] if option.startswith("--")), done.stdout
    elif program == "python":
        _, module, *options = arguments
        said = StringIO()
        argv = mock.patch.object(sys, "argv", [module, *options, "--help"])
        with argv, redirect_stdout(said), pytest.raises(SystemExit, match=r"^0$"):
            import_module(module).main()
        unknown = [one for one in options if one.startswith("--") and not re.search(rf"{one}\b", said.getvalue())]
        assert not unknown, unknown
    else:
        commands = {"make": ["make", "-n"], "pip": [sys.executable, "-m", "pip", "--no-input"]}
        dry = ["--dry-run", "--no-index"] if program == "pip" else []
        command = [*commands[program], *arguments, *dry]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "does not provide the extra" not in done.stderr, done.stderr


class Model(BaseHTTPRequestHandler):
    """A model behind an OpenAI-compatible endpoint, which says the same of everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = json.dumps({"label": "a number", "fits": [1]})
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def curl(arguments: list[str]) -> None:
    """Send what curl would: it is not on every machine."""
    parser = argparse.ArgumentParser("curl")
    for flag in ("-s", "-i"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    parser.add_argument("-o")
    parser.add_argument("url")
    asked = parser.parse_args(arguments)
    headers = dict(header.split(": ", 1) for header in asked.H)
    answer = httpx2.request("POST" if asked.d else "GET", asked.url, headers=headers, content=asked.d, timeout=30)
    assert answer.status_code < 400, f"{asked.url}: {answer.text}"
    if asked.o:
        Path(asked.o).write_bytes(answer.content)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Before the first page: a service, an empty folder, and a rule that will have raised an alert."""
    models, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("reader")
    for seed, name in enumerate(("v1", "v2", "v3")):
        save_checkpoint(models / name, seed=seed)
    rows = ({"text": f"number {i} {'is' if i % 2 else 'was'} it", "label": i % 2} for i in range(40))
    (folder / "refusal.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    receiver, model = Receiver(), ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=model.serve_forever, daemon=True).start()
    settings = dict.fromkeys(("FEATUREWATCH_WEBHOOK_ALLOW", "FEATUREWATCH_LABEL_ALLOW"), "127.0.0.1/32")
    settings |= {"FEATUREWATCH_LABEL_URL": f"http://127.0.0.1:{model.server_port}/v1"}
    settings |= {"FEATUREWATCH_LABEL_MODEL": "small", "FEATUREWATCH_THREADS": "1"}
    up = Up(tmp_path_factory.mktemp("docs"), "--root", str(models), env=settings)
    reader = Reader(up, models, folder, receiver)
    reader.client.create_alert_rule("anything", {"kind": "quality", "max_fvu": 1e-6})
    with chdir(folder):
        yield reader
    reader.client.close()
    receiver.close()
    model.shutdown()
    model.server_close()
    assert up.stop() == 0


def test_every_command_runs(reader: Reader) -> None:
    wrong, read = [], []
    for name in PAGES:
        reader.turn_to_a_page()
        for block in blocks(ROOT / name, WORDS):
            block = block._replace(text=block.text.replace(COMPOSE, "featurewatch"))  # noqa: PLW2901
            try:
                reader.read(block)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is told of its place
                wrong.append(f"{block.place}: {block.text.strip().splitlines()[0]}\n  {error!r}")
            read.append(block)
    assert not wrong, "\n".join(wrong)
    assert reader.skipped == set(NOT_RUN), "no page has a command of this kind any more"
    assert len([block for block in read if block.text.startswith("featurewatch")]) > 60
    assert {"command", "python", "assignment", "toml", "json"} <= {block.kind for block in read}


def test_commands_in_sentences_exist() -> None:
    """With the options that they name there."""
    reference = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    known = {part.partition("\n")[0]: part for part in reference.split("\n## featurewatch ")[1:]}
    found = [mention for name in PAGES for mention in mentions(ROOT / name) if not mention.text.startswith("-")]
    for place, _, text in found:
        command = max((name for name in known if f"{text} ".startswith(f"{name} ")), key=len, default=None)
        assert command, f"{place}: there is no `featurewatch {text}`"
        for option in re.findall(r"(?<= )--[a-z-]+", text):
            assert f"`{option}`" in known[command], f"{place}: `featurewatch {command}` has no {option}"
    assert len(found) > 30


def test_events_hold_what_the_docs_say(reader: Reader) -> None:
    """Events of every type, as the pages' commands made them and one run more that fails."""
    run = reader.client.register("assistant", name="never", uri=reader.exchanged("hf://org/model@v3"), fit="later")[
        "run"
    ]
    assert reader.client.wait(run["id"], timeout=60)["state"] == "failed"
    reader.client.delete_checkpoint("assistant", "never")
    reader.client.create_family("mistake", ["resid_post.1"])
    reader.client.delete_family("mistake")
    # That of the page was muted before: its end is not told.
    reader.client.resolve(next(reader.client.alerts(state="open"))["id"])
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.+?) \|", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.M)
    documented = {type_: set(re.findall(r"`(\w+)`", fields)) for type_, fields in rows}
    with closing(sqlite3.connect(f"{reader.up.where['data_dir']}/featurewatch.db")) as connection:
        events = connection.execute("SELECT type, data FROM event").fetchall()
    assert {type_ for type_, _ in events} == {*EventType, TEST_EVENT} == set(documented)
    for type_, data in events:
        assert set(json.loads(data)) == documented[type_] - OF_A_REFIT, type_
