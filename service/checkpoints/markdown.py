"""Text from outside as Markdown: labels, tokens and messages that must not become marks, HTML, links or mentions."""

import re

from featurewatch.service.features import words
from featurewatch.service.features.schemas import Example

_MOST_LETTERS = 4000
"""Of one text in a document: far more than any sentence has."""


def cell(text: str) -> str:
    """Text for Markdown, also in a table: no line breaks, no marks, nothing that becomes HTML, a mention or a link."""
    flat = words.plain(text, most=_MOST_LETTERS)
    for mark in "\\`*_{}[]<>|#&~$":
        flat = flat.replace(mark, "\\" + mark)
    # GitHub looks for these in the rendered text, where an escape does not help: a space of no width does.
    for word in ("@", "://", "www."):
        flat = flat.replace(word, word[0] + "\u200b" + word[1:])
    return flat


def code(example: Example) -> str:
    """An example as Markdown code, in which nothing else is a mark; its token stands in ⟦ ⟧."""
    place = words.passage(example)
    if place is None:
        return f"document {example.document}, position {example.position}"
    text = f"{place[0]}⟦{place[1]}⟧{place[2]}"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"
