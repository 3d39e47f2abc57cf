"""The commands and the Python of a page of the docs, in order."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"```(\w*)\n(.*?)```", re.S)
_MENTION = re.compile(r"`featurewatch\s+([^`]+)`")
_ASSIGNMENT = re.compile(r"(?:export )?[A-Z_][A-Z0-9_]*=\S+$")
INDENT = "    "


class Block(NamedTuple):
    """Something that a reader would run."""

    place: str
    """page:line"""
    kind: str
    """command, assignment, or the language of a fenced block"""
    text: str


def blocks(page: Path, words: frozenset[str]) -> Iterator[Block]:
    """Fenced blocks; and indented lines that begin with one of the words, or give a variable its value.

    A line that ends with a backslash goes on in the next one; a comment at the end goes.
    """
    text = page.read_text(encoding="utf-8")
    fences = {found.start(): found for found in _FENCE.finditer(text)}
    at, line, rest = 0, 1, ""
    while at < len(text):
        found = fences.get(at)
        piece = found[0] if found else text[at:].partition("\n")[0] + "\n"
        place = f"{page.name}:{line}"
        if found:
            yield Block(place, found[1], found[2])
        elif piece.startswith(INDENT):
            whole = rest + piece.strip()
            rest = whole[:-1] if whole.endswith("\\") else ""
            first = whole.partition(" ")[0]
            if not rest and first in words:
                yield Block(place, "command", whole)
            elif not rest and _ASSIGNMENT.match(whole):
                yield Block(place, "assignment", whole.removeprefix("export "))
        at, line = at + len(piece), line + piece.count("\n")


def mentions(page: Path) -> Iterator[Block]:
    """Commands inside sentences and tables, without their first word."""
    text = page.read_text(encoding="utf-8")
    for found in _MENTION.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(f"{page.name}:{line}", "mention", " ".join(found[1].split()))
