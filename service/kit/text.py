"""Makes untrusted text safe to show on one line of a terminal, page or message."""

import re
import unicodedata

_MOST_LETTERS = 80


def plain(text: str, most: int = _MOST_LETTERS) -> str:
    """Text on one line, without characters that act on a terminal or change the direction of writing. most: length."""
    flat = visible(text).strip()
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def visible(text: str) -> str:
    """Whitespace, and characters that are invisible or act on a terminal, as single spaces."""
    cleaned = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)
    return re.sub(r"\s+", " ", cleaned)
