"""Finds the phrases of docs/phrases.txt in the docs, and in the strings, docstrings and comments of the code.

Prints `file:line: phrase => advice` for each and exits with 1 if there are any. Arguments: files; by default, all.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHRASES = ROOT / "docs" / "phrases.txt"
FOLDERS = ("benchmarks", "deploy", "docs", "featurewatch", "migrations", "requirements", "service", "tests", "workers")
SUFFIXES = {".css", ".html", ".js", ".md", ".py", ".toml", ".txt", ".yml"}
EXCLUDED = ("CHANGELOG.md", "tests/unit/test_wording.py")
"""The record of past releases, and the test of this check."""


def main() -> None:
    """Check the files that are named, or all of them."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or [*ROOT.glob("*.md"), *in_folders()]
    findings = [finding for path in sorted(paths) if wanted(path) for finding in check(path)]
    sys.stdout.write("".join(f"{finding}\n" for finding in findings))
    sys.exit(bool(findings))


def in_folders() -> Iterator[Path]:
    """Every file below the folders."""
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file())


def wanted(path: Path) -> bool:
    """Whether a file has text of ours that should be free of such phrases."""
    name = path.relative_to(ROOT).as_posix()
    return path.suffix in SUFFIXES and "/vendor/" not in name and path != PHRASES and not name.startswith(EXCLUDED)


def check(path: Path) -> Iterator[str]:
    """The findings in one file."""
    text = path.read_text(encoding="utf-8")
    for entry in PHRASES.read_text(encoding="utf-8").splitlines():
        if not entry or entry.startswith("#"):
            continue
        pattern, _, advice = entry.partition(" => ")
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())} => {advice}"


if __name__ == "__main__":
    main()
