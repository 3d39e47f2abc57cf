"""What a type checker accepts of calls of the client."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALLS = """
from typing import Any

from featurewatch.service.client import Client, types

client = Client("http://127.0.0.1:8000")
read: dict[str, Any] = {}
crosscoder: types.CrosscoderOptions = {"k": 8}
client.create_family("a", ["b"], corpus={"uri": "file:///c"}, crosscoder=crosscoder, policy={"fdr": 0.01})
client.create_family("a", ["b"], corpus=read, crosscoder=client.family("c")["crosscoder"])
client.create_family("a", ["b"], corpus={"url": "file:///c"})  # type: ignore
client.create_family("a", ["b"], crosscoder={"k": "8"})  # type: ignore
client.create_family("a", ["b"], policy={"fdrs": 0.01})  # type: ignore
client.create_alert_rule("a", {"kind": "tag", "tag": "b"})
client.create_alert_rule("a", read)
client.create_alert_rule("a", {"kind": "tag"})  # type: ignore
client.update_alert_rule("a", condition={"kind": "tags", "tag": "b"})  # type: ignore
client.create_signature("a", "b", rows=[{"text": "c", "label": True}, {"positive": "d", "negative": "e"}])
client.create_signature("a", "b", rows=[read], settings=read)
client.create_signature("a", "b", rows=[{"text": "c"}])  # type: ignore
client.create_signature("a", "b", settings={"position": "first"})  # type: ignore
client.calibrate("a", finetune={"steps": 3})
client.calibrate("a", finetune={"step": 3})  # type: ignore
client.find_dependencies("a", "b", ["F1"], steps="many")  # type: ignore
"""


def test_a_type_checker_knows_what_may_be_sent(tmp_path: Path) -> None:
    """mypy also rejects an `ignore` that is not needed.

    It reports errors of the user's file only, as it does where the package is installed.
    """
    (tmp_path / "calls.py").write_text(CALLS, encoding="utf-8")
    options = ["--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "calls.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
