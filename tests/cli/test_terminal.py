"""What people see: tables on terminals of any width, colours, courses, completion, and where to go next."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.text import Text

from featurewatch.service.cli import app, base, draw, progress
from featurewatch.service.client import Client
from tests.cli.live import command, within

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
SHORT_ID = re.compile(r"\b(?:run|rul|alt|whk|dlv|key|req)_\w+")
TABLES = (
    "family list", "checkpoint list smol", "run list", "features smol --checkpoint v2", "diff smol v1 v2 --rows",
    "feature smol F1 --sources", "lineage smol", "signature list smol", "signature show smol refusal_0", "webhook list",
    "webhook deliveries whk_1", "alert rule list", "alert list", "key list", "audit", "dependencies smol F5",
)  # fmt: skip
"""Commands that print a table of what `filled_url` holds."""


def leaves(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Commands by their names."""
    for sub, found in group.commands.items():
        yield from leaves(found, f"{name}{sub} ") if hasattr(found, "commands") else [(name + sub, found)]


def on_terminal(url: str, columns: int, *arguments: str, **environment: str) -> str:
    """What a command shows on a terminal so wide."""
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    settings = {"FEATUREWATCH_URL": url, "COLUMNS": str(columns), "TERM": "xterm-256color"} | environment
    here, there = pty.openpty()
    start = [sys.executable, "-c", "from featurewatch.service.cli import main; main()", *arguments]
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
    assert lines[0].split()[:3] == ["FEATURE", "STATUS", "PLACES"]
    row = next(line for line in lines if line.startswith("F0"))
    assert "suppressed" in row and "0.25 (0.23 to 0.28)" in row and "token0" in row
    assert all(len(line) <= 80 for line in lines[:-1])
    assert lines[-1].startswith("Too narrow for WAS, STRENGTH")
    wide = on_terminal(filled_url, 160, "features", "smol", "--checkpoint", "v2", NO_COLOR="1")
    assert not COLOUR.search(wide)
    assert "FIRINGS" in wide and "Too narrow" not in wide


@dataclass
class Table:
    """What was to be shown, and what was printed."""

    headings: list[str]
    lines: list[list[str]]
    printed: str = ""
    note: str = ""


class Terminal:
    """A terminal so wide, in this process; it keeps the tables apart that a command prints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        self.shown, self.said = io.StringIO(), io.StringIO()
        self.tables: list[Table] = []
        self._show_rows = base.show_rows
        for name, file in (("out", self.shown), ("err", self.said)):
            console = Console(file=file, width=width, force_terminal=True, color_system=None)
            monkeypatch.setattr(base, name, console)
        monkeypatch.setattr(base, "show_rows", self.show_rows)

    def show_rows(self, rows: Any, columns: Any, **options: Any) -> None:
        headings = [heading for heading, _ in columns]
        lines = [[self.real(base.cell(base.value_of(row, value))) for _, value in columns] for row in rows]
        began = self.shown.tell(), self.said.tell()
        places = [(heading, lambda line, place=place: line[place]) for place, heading in enumerate(headings)]
        self._show_rows(lines, places, **options)
        printed, note = self.shown.getvalue()[began[0] :], self.said.getvalue()[began[1] :]
        self.tables.append(Table(headings, lines, printed, note))

    @staticmethod
    def real(text: str) -> str:
        """A text with ids as long as they are outside of tests."""
        return SHORT_ID.sub(lambda found: f"{found[0]:0<30}", text)


def characters(texts: list[str]) -> Counter[str]:
    return Counter(letter for text in texts for letter in text if not letter.isspace())


def nothing_is_lost(table: Table, width: int) -> None:
    """Each character of each cell is there, but for the columns that the note names, and words are whole."""
    left = table.note.removeprefix("Too narrow for ").partition(":")[0].split(", ")
    places = [place for place, heading in enumerate(table.headings) if heading not in left]
    headings = [table.headings[place] for place in places]
    cells = [line[place] for line in table.lines for place in places]
    found = characters([table.printed])
    assert found in (characters(headings + cells), characters(headings * len(table.lines) + cells)), table.printed
    assert all(len(line) <= width for line in table.printed.splitlines()), table.printed
    for word in (word for cell in cells for word in cell.split() if len(word) <= 20):
        assert word in table.printed


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("words", TABLES)
def test_a_table_loses_nothing(filled_url: str, words: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if words == "audit":
        within("feature", "smol", "F5", "--no-watch", env={"FEATUREWATCH_URL": filled_url})
    terminal = Terminal(monkeypatch, width)
    done = within(*words.split(), env={"FEATUREWATCH_URL": filled_url})
    assert done.returncode == 0, terminal.said.getvalue()
    assert any(table.lines for table in terminal.tables)
    for table in terminal.tables:
        if table.lines:
            nothing_is_lost(table, width)


def test_every_list_is_looked_at() -> None:
    lists = {name for name, _ in leaves(typer.main.get_command(app)) if name.endswith((" list", " deliveries"))}
    assert {name for name in lists if not any(words.startswith(name) for words in TABLES)} == set()


def test_what_fits_no_table_is_printed_value_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    condition = {"kind": "status_count", "status": "suppressed", "statuses": ["absent", "replaced"]}
    columns = [("ID", lambda row: "rul_" + 26 * "0"), ("CONDITION", lambda row: row), ("ENABLED", lambda row: True)]
    for width, printed in (
        (70, f"""
ID                              CONDITION                      ENABLED
rul_{26 * "0"}  kind=status_count;             yes
                                status=suppressed;
                                statuses=absent, replaced
"""),
        (45, f"""
ID         rul_{26 * "0"}
CONDITION  kind=status_count;
           status=suppressed;
           statuses=absent, replaced
ENABLED    yes
"""),
    ):  # fmt: skip
        terminal = Terminal(monkeypatch, width)
        base.show_rows([condition], columns, empty="", wraps=("CONDITION",))
        assert [line.rstrip() for line in terminal.shown.getvalue().splitlines()] == printed.splitlines()[1:]
        monkeypatch.undo()


def test_what_is_nested_has_a_line_for_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    result = {"statuses": {"present": 2000, "absent": 2}, "fit": "extend", "signature_run": None, "left": {}}
    base.show_fields([("result", result), ("failed", [{"feature": "F1"}]), ("tags", ["a", "b"]), ("error", None)])
    assert [line.rstrip().split(maxsplit=1) for line in terminal.shown.getvalue().splitlines()] == [
        ["result.statuses.present", "2000"],
        ["result.statuses.absent", "2"],
        ["result.fit", "extend"],
        ["result.left", "-"],
        ["failed.0.feature", "F1"],
        ["tags", "a, b"],
    ]


def test_runs_are_told_apart(filled_url: str) -> None:
    done = within("run", "list", env={"FEATUREWATCH_URL": filled_url})
    heading, newest, *_ = done.stdout.splitlines()
    assert heading.split()[3:5] == ["KIND", "STATE"] and heading.split()[-2:] == ["ELAPSED", "AGE"]
    assert newest.split()[:5] == ["run_5", "smol", "v2", "label", "cancelled"]
    assert re.search(r"\d+ (s|min)$", newest)
    assert base.age("2026-03-01T10:00:00Z", "2026-03-01T12:00:00.5+00:00") == 7200.5
    assert base.age("2999-01-01T00:00:00Z") == 0, "this machine's clock may be behind"


def test_tags_can_be_taken_away(filled_url: str) -> None:
    def tags(*options: str) -> Any:
        done = within("feature", "smol", "F5", *options, "--json", env={"FEATUREWATCH_URL": filled_url})
        return json.loads(done.stdout)["feature"]["tags"]

    assert tags("--tag", "a", "--tag", "b") == ["a", "b"]
    assert tags("--no-watch") == ["a", "b"]
    assert tags("--tag", "") == []


@pytest.mark.parametrize("what", ["codes smol -o", "parquet smol", "neuronpedia smol -o", "dictionary smol v1 -o"])
def test_a_place_that_cannot_be_written_is_no_failed_gate(filled_url: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "x")
    options = ["--hook-point", "resid_post.4"] if what.startswith("dictionary") else []
    done = within("export", *what.split(), place, *options, env={"FEATUREWATCH_URL": filled_url})
    assert done.returncode == 2, done.stderr
    assert f"cannot write {place}: Not a directory; choose a writable path" in done.stderr


def test_a_hint_names_the_command(filled_url: str) -> None:
    env = {"FEATUREWATCH_URL": filled_url}
    done = within("dependencies", "smol", "F1", env=env)
    assert done.returncode == 2 and "POST" not in done.stderr
    assert "compute them with `featurewatch dependencies smol F1 --find --checkpoint NAME`" in done.stderr
    for uri, meant in (
        ("/tmp/x", "use file:///tmp/x for a folder on the server\n"),
        ("activations+/tmp/x", "use activations+file:///tmp/x for"),
        ("org/model", "or hf://org/model for a model on the Hub"),
    ):
        done = within("checkpoint", "register", "smol", "v9", uri, env=env)
        assert done.returncode == 2 and meant in done.stderr


def test_a_pipe_gets_every_column(filled_url: str) -> None:
    done = command("features", "smol", "--checkpoint", "v2", env={"FEATUREWATCH_URL": filled_url, "COLUMNS": "40"})
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == [
        "FEATURE", "STATUS", "PLACES", "WAS", "PROJECTION", "STRENGTH", "Q", "FIRINGS", "RATE", "GAINED", "LOST",
        "SUCCESSORS", "WHAT",
    ]  # fmt: skip
    assert len(rows) == 3 and "\x1b" not in done.stdout
    end = heading.index("FIRINGS") + len("FIRINGS")
    assert all(row[end - 3 : end] == "300" for row in rows), "numbers end below each other"


def test_features_are_chosen_by_their_places(filled_url: str) -> None:
    env = {"FEATUREWATCH_URL": filled_url}
    done = within("features", "smol", "--checkpoint", "v2", "--places", "narrowed", "--places", "broadened", env=env)
    _, row = done.stdout.splitlines()
    assert row.split()[:3] == ["F0", "suppressed", "broadened"] and " 3.00 " in row and " 1.90 " in row
    compared = within("diff", "smol", "v1", "v2", "--places", "broadened", env=env).stdout
    finding, listed = (line for line in compared.splitlines() if line.startswith("F0 "))
    assert finding.split()[:3] == listed.split()[:3] == ["F0", "suppressed", "broadened"]
    course = within("feature", "smol", "F0", env=env).stdout
    assert re.search(r"^v2 +suppressed +broadened ", course, re.MULTILINE)
    assert within("features", "smol", "--places", "absent", env=env).returncode == 2


def test_a_feature_shows_its_course(filled_url: str) -> None:
    done = command("feature", "smol", "F0", env={"FEATUREWATCH_URL": filled_url})
    assert "course           █▃  100%, 25%" in done.stdout
    missing = command("feature", "smol", "F99", env={"FEATUREWATCH_URL": filled_url})
    assert missing.returncode == 2
    assert "List the existing ones with `featurewatch features FAMILY`." in missing.stderr


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
    clock = progress._Clock()
    run: Any = {"stage": "fit", "state": "running", "progress": 0.5}  # it goes on where a killed one stopped
    assert clock.left(run) == ""
    assert clock.left(run | {"progress": 0.55}) == ""
    assert clock.left(run | {"progress": 0.6}) == "about 40 s left"
    assert clock.left(run | {"stage": "measure", "progress": 0.0}) == ""


def test_a_shell_completes_names(filled_url: str) -> None:
    def completed(words: str) -> list[str]:
        asked = {"_FEATUREWATCH_COMPLETE": "complete_bash", "COMP_WORDS": f"featurewatch {words}"}
        asked |= {"COMP_CWORD": str(len(words.split(" "))), "FEATUREWATCH_URL": filled_url}
        program = "import sys; sys.argv = ['featurewatch']; from featurewatch.service.cli import complete, main; "
        start = [sys.executable, "-c", program + "complete.SECONDS = 30; main()"]
        done = subprocess.run(start, env=os.environ | asked, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("feature smol F") == ["F0", "F1", "F5"]
    assert completed("diff smol v1 v") == ["v1", "v2", "v3"]
    assert completed("features smol --checkpoint v") == ["v1", "v2", "v3"]
    assert completed("features smol --status s") == ["suppressed"]
    assert completed("diff smol v1 v2 --places b") == ["broadened"]
    assert completed("webhook redeliver whk_7 d") == ["dlv_7"]
    assert completed("alert rule create x --family smol --signature refusal_4") == ["refusal_4"] + [
        f"refusal_4{digit}" for digit in range(10)
    ]
    assert completed("report sm") == ["smol"]
    assert completed("report smol v") == ["v1", "v2", "v3"]
    assert completed("run log run_4") == ["run_4"]
    assert completed("run log run_4 --level w") == ["warning"]
    assert completed("--url http://127.0.0.1:1 report sm") == [], "completion ignores an unreachable service"


def test_arguments_of_a_kind_are_completed_in_every_command() -> None:
    kinds = {
        "family", "checkpoint", "baseline", "parent", "from_", "to", "feature", "run", "webhook", "delivery", "alert",
        "rule", "key", "signature", "status", "places", "state",
    }  # fmt: skip
    missing = {
        f"{name} {parameter.name}"
        for name, found in leaves(typer.main.get_command(app))
        for parameter in found.params
        if parameter.name in kinds and parameter._custom_shell_complete is None and name != "db copy"
    }
    assert missing == set()


def test_json_everywhere() -> None:
    """Every command has --json, but for `demo`, which hands its options on."""
    for name, found in leaves(typer.main.get_command(app)):
        options = {option for parameter in found.params for option in parameter.opts}
        assert "--json" in options or name == "demo", name


HOSTILE = "\x1b]0;owned\x07\x9b2J\x1b[31mred\u202egnp\x08\x7f\nF9  absent\ttab\rover\ud800"
"""Sets the title, clears the screen, changes colours and the direction of writing, deletes, and adds a row."""
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")
OUR_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [24, 200])
def test_no_text_from_elsewhere_acts_on_the_terminal(monkeypatch, capsys, terminal: bool, width: int) -> None:
    shown = io.StringIO()
    for name in ("out", "err"):
        console = base.SafeConsole(file=shown, width=width, force_terminal=terminal, color_system=None)
        monkeypatch.setattr(base, name, console)
    columns = [("NAME", lambda row: row["name"]), ("TEXT", lambda row: Text(row["name"], style="red")),
               ("LIST", lambda row: [row["name"]]), ("PARTS", lambda row: {row["name"]: row["name"]})]  # fmt: skip
    base.show_rows([{"name": HOSTILE}], columns, empty="", wraps=("NAME", "PARTS"))
    rows = shown.getvalue()
    assert "owned" in rows or width == 24
    assert not any(line.startswith("F9") for line in rows.splitlines()) or width == 24, "one row stays one row"
    base.show_rows([], columns, empty=HOSTILE)
    base.show_fields([("label", HOSTILE), ("quality", {HOSTILE: HOSTILE, "list": [{"x": HOSTILE}]})])
    base.say(HOSTILE)
    base.complain(HOSTILE, 1)
    base.out.print(HOSTILE, markup=False)
    with pytest.raises(typer.Exit):
        base._print_version(True)
    text = shown.getvalue() + capsys.readouterr().out
    assert text.count("owned") >= 6 if width == 200 else text
    assert ACTING.findall(text) == []
    text.encode()  # a lone surrogate would end the command


def test_a_hostile_label_does_not_act_on_the_terminal(filled_url: str) -> None:
    """End to end: what the service took is shown without escape sequences, by every command that shows it."""
    hostile = HOSTILE[:-1]  # JSON of a request cannot hold the surrogate
    with Client(filled_url) as client:
        before = client.feature("smol", "F5")["label"]
        client.update_feature("smol", "F5", label=hostile)
        try:
            for arguments in (
                ("feature", "smol", "F5"), ("features", "smol"), ("report", "smol", "v2"),
                ("report", "smol", "v2", "--format", "markdown"), ("diff", "smol", "v1", "v2", "--rows"),
            ):  # fmt: skip
                printed = OUR_COLOUR.sub("", on_terminal(filled_url, 200, *arguments, NO_COLOR="1"))
                assert ACTING.findall(printed) == [], arguments
            assert "owned" in printed
            exact = within("feature", "smol", "F5", "--json", env={"FEATUREWATCH_URL": filled_url}).stdout
            assert "\\u001b]0;owned\\u0007" in exact, "JSON escapes, and leaves nothing out"
        finally:
            client.update_feature("smol", "F5", label=before)
