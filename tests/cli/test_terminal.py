"""What people see: tables on terminals of any width, colours, courses, completion, and where to go next."""

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from service.cli import app, base, draw
from tests.cli.live import command

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


def on_terminal(url: str, columns: int, *arguments: str, **environment: str) -> str:
    """What a command shows on a terminal so wide."""
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    settings = {"FEATUREWATCH_URL": url, "COLUMNS": str(columns), "TERM": "xterm-256color"} | environment
    here, there = pty.openpty()
    start = [sys.executable, "-c", "from service.cli import main; main()", *arguments]
    with subprocess.Popen(start, stdin=there, stdout=there, stderr=there, env=clean | settings) as process:
        os.close(there)
        shown = b""
        while True:
            try:
                piece = os.read(here, 65536)
            except OSError:  # Linux says so where the last process has closed its side
                break
            if not piece:
                break
            shown += piece
        process.wait(timeout=20)
    os.close(here)
    return shown.decode().replace("\r\n", "\n")


def test_a_table_fits_its_terminal(filled_url: str) -> None:
    narrow = on_terminal(filled_url, 80, "features", "smol", "--checkpoint", "v2")
    assert COLOUR.search(narrow), "verdicts have colours on a terminal"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", narrow).splitlines()
    assert lines[0].split()[:3] == ["FEATURE", "STATUS", "PROJECTION"]
    row = next(line for line in lines if line.startswith("F0"))
    assert "suppressed" in row and "0.25 (0.23 to 0.28)" in row and "token0" in row
    assert all(len(line) <= 80 for line in lines[:-1])
    assert lines[-1].startswith("Too narrow for WAS, STRENGTH")
    wide = on_terminal(filled_url, 160, "features", "smol", "--checkpoint", "v2", NO_COLOR="1")
    assert not COLOUR.search(wide)
    assert "FIRINGS" in wide and "Too narrow" not in wide


def test_a_pipe_gets_every_column(filled_url: str) -> None:
    done = command("features", "smol", "--checkpoint", "v2", env={"FEATUREWATCH_URL": filled_url, "COLUMNS": "40"})
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == [
        "FEATURE", "STATUS", "WAS", "PROJECTION", "STRENGTH", "Q", "FIRINGS", "SUCCESSORS", "WHAT",
    ]  # fmt: skip
    assert len(rows) == 3 and "\x1b" not in done.stdout
    end = heading.index("FIRINGS") + len("FIRINGS")
    assert all(row[end - 3 : end] == "300" for row in rows), "numbers end below each other"


def test_a_feature_shows_its_course(filled_url: str) -> None:
    done = command("feature", "smol", "F0", env={"FEATUREWATCH_URL": filled_url})
    assert "course           █▃  100%, 25%" in done.stdout
    missing = command("feature", "smol", "F99", env={"FEATUREWATCH_URL": filled_url})
    assert missing.returncode == 2
    assert "`featurewatch features FAMILY` lists those that there are." in missing.stderr


def point(checkpoint: str, baseline: str | None, status: str, ratio: float | None) -> Any:
    return {"checkpoint": checkpoint, "baseline": baseline, "status": status, "projection_ratio": ratio}


def test_levels_are_chained() -> None:
    points = [
        point("v1", None, "emerged", None),
        point("v2", "v1", "suppressed", 0.5),
        point("v3", "v2", "absent", 0.1),
        point("v4", "v3", "emerged", 1.5),  # against v2, where it was last there
        point("v5", "v4", "indeterminate", None),
        point("side", "v2", "present", 1.0),
    ]
    assert draw.levels(points) == [1.0, 0.5, 0.05, 0.75, None, 0.5]
    assert draw.sparkline([1.0, 0.5, -0.02, None, 2.0]) == "▅▃▁·█"
    assert draw.course(points[:1]) is None


def test_how_long_it_takes_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([0.0, 1.0, 10.0, 11.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    clock = base._Clock()
    run: Any = {"stage": "fit", "state": "running", "progress": 0.5}  # it goes on where a killed one stopped
    assert clock.left(run) == ""
    assert clock.left(run | {"progress": 0.55}) == ""
    assert clock.left(run | {"progress": 0.6}) == "about 40 s left"
    assert clock.left(run | {"stage": "measure", "progress": 0.0}) == ""


def test_a_shell_completes_names(filled_url: str) -> None:
    def completed(words: str) -> list[str]:
        asked = {"_FEATUREWATCH_COMPLETE": "complete_bash", "COMP_WORDS": f"featurewatch {words}"}
        asked |= {"COMP_CWORD": str(len(words.split(" "))), "FEATUREWATCH_URL": filled_url}
        program = "import sys; sys.argv = ['featurewatch']; from service.cli import complete, main; "
        start = [sys.executable, "-c", program + "complete.SECONDS = 30; main()"]
        done = subprocess.run(start, env=os.environ | asked, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("report sm") == ["smol"]
    assert completed("report smol v") == ["v1", "v2", "v3"]
    assert completed("run log run_4") == ["run_4"]
    assert completed("run log run_4 --level w") == ["warning"]
    assert completed("--url http://127.0.0.1:1 report sm") == [], "a service that is away is no error at a prompt"


def test_json_everywhere() -> None:
    """Every command has --json, but for `demo`, which hands its options on."""

    def leaves(group: Any, name: str) -> Iterator[tuple[str, Any]]:
        for sub, found in group.commands.items():
            yield from leaves(found, f"{name} {sub}") if hasattr(found, "commands") else [(f"{name} {sub}", found)]

    for name, found in leaves(typer.main.get_command(app), "featurewatch"):
        options = {option for parameter in found.params for option in parameter.opts}
        assert "--json" in options or name == "featurewatch demo", name
