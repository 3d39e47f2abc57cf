"""The check of phrases that `make lint` runs, and the attributes of files that are written by `make`."""

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


def checkout(folder: Path) -> Path:
    """A project with the script, the phrases and one page."""
    (folder / "docs").mkdir()
    for name in ("check_phrases.py", "phrases.txt"):
        (folder / "docs" / name).write_bytes((ROOT / "docs" / name).read_bytes())
    return folder / "docs" / "page.md"


def test_phrases_are_found_with_their_lines(tmp_path: Path) -> None:
    page = checkout(tmp_path)
    page.write_text("There is no model.\n`x` is\nno model.\nIt is no longer here.\nStart anew.\n", encoding="utf-8")
    command = [sys.executable, tmp_path / "docs" / "check_phrases.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert [line.partition(" => ")[0] for line in done.stdout.splitlines()] == [
        "docs/page.md:2: is no",
        "docs/page.md:5: anew",
    ]
    page.write_text("There is no model.\n", encoding="utf-8")
    assert subprocess.run(command, check=False).returncode == 0


def test_generated_files_are_marked() -> None:
    """Reviews fold them. A pattern that matches no such file is out of date."""
    lines = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    patterns = [line.split()[0] for line in lines if line.endswith(" linguist-generated")]
    paths = [path for folder in ("docs", "requirements", "service") for path in (ROOT / folder).rglob("*.*")]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path.suffix in (".md", ".lock", ".py")}
    names = [path.relative_to(ROOT).as_posix() for path, text in texts.items() if "Written by `make " in text[:200]]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []
