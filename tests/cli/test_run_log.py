"""`featurewatch run log`: as text, as JSON, on a terminal, and while the run goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Run
from featurewatch.service.runs import logic
from featurewatch.service.runs.schemas import LogLineView
from featurewatch.service.runs.states import RunState
from featurewatch.service.runs.words import as_text
from tests import factories
from tests.cli.live import command
from tests.cli.test_terminal import COLOUR, on_terminal
from tests.e2e.parts import Service


def test_a_log_is_shown(filled_url: str) -> None:
    here = {"FEATUREWATCH_URL": filled_url}
    first, second = command("run", "log", "run_3", env=here).stdout.splitlines()
    assert re.fullmatch(r"20[\d-]{8} [\d:]{8}\.\d{3}  #1  info     claimed  kind=onboard", first)
    assert second.endswith("  #1  warning  missed a beat")
    done = command("run", "log", "run_3", "--level", "warning", "--attempt", "1", "--follow", env=here)
    assert done.stdout.splitlines() == [second]
    (line,) = json.loads(command("run", "log", "run_3", "--level", "warning", "--json", env=here).stdout)
    assert (line["number"], line["event"]) == (2, "missed a beat")
    none = command("run", "log", "run_3", "--attempt", "7", env=here)
    assert (none.stdout, none.returncode) == ("", 0) and "No log lines" in none.stderr
    assert COLOUR.search(on_terminal(filled_url, 80, "run", "log", "run_3"))
    missing = command("run", "log", "run_none", env=here)
    assert missing.returncode == 2 and "`featurewatch run list`" in missing.stderr


def test_a_line_acts_on_no_terminal_and_passes_for_no_other() -> None:
    told = {
        "number": 1, "attempt": 2, "at": "2026-07-30T12:00:01.25Z", "level": "error", "event": "a\x1b[2Jb\n2026 fake",
        "fields": {"n": 0.1234567, "seconds": {"fit": 2}, "all": [True, None], "exception": "Traceback\n  at\u202e\n"},
    }  # fmt: skip
    assert as_text(LogLineView.model_validate(told)) == (
        "2026-07-30 12:00:01.250  #2  error    a\N{REPLACEMENT CHARACTER}[2Jb\n    2026 fake  "
        "n=0.123457 seconds={fit: 2} all=[yes, -]\n    Traceback\n      at\N{REPLACEMENT CHARACTER}"
    )


def test_a_run_is_followed_to_its_end(tmp_path: Path, sqlite_template: Path) -> None:
    shutil.copyfile(sqlite_template, tmp_path / "featurewatch.db")
    database = Database(f"sqlite:///{tmp_path / 'featurewatch.db'}")
    with database.write() as session:
        family = factories.family(session)
        run_id = logic.create(session, family_id=family.id, checkpoint_id=None, kind="onboard", params={}).id
        logic.claim(session, worker="w", lease_seconds=600)
        factories.log(session, session.get_one(Run, run_id), [("info", "first", {})])
    with Service(tmp_path, str(database.url), worker=False) as live:
        start = [sys.executable, "-c", "from featurewatch.service.cli import main; main()", "run", "log", run_id]
        with subprocess.Popen(
            [*start, "--follow", "--json"],
            env=os.environ | {"FEATUREWATCH_URL": str(live.client.url), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout
            assert json.loads(process.stdout.readline())["event"] == "first"
            with database.write() as session:
                factories.log(session, session.get_one(Run, run_id), [("warning", "second", {})])
            assert json.loads(process.stdout.readline())["event"] == "second"
            with database.write() as session:
                factories.log(session, session.get_one(Run, run_id), [("error", "last", {})])
                assert logic.finish(session, run_id=run_id, attempt=1, state=RunState.FAILED)
            assert [json.loads(line)["event"] for line in process.stdout] == ["last"]
        assert process.returncode == 0
    database.close()
