"""Escapes untrusted text for Markdown: labels, tokens and messages must not become markup, HTML, links or mentions."""

import re

from featurewatch.service.features import words
from featurewatch.service.features.schemas import Example
from featurewatch.service.kit.text import plain

_MOST_LETTERS = 4000
"""Limit for one text in a document, far longer than any sentence."""


def cell(text: str) -> str:
    """Text for Markdown, table cells included: no line breaks, markup, HTML, mentions or links."""
    flat = plain(text, most=_MOST_LETTERS)
    for mark in "\\`*_{}[]<>|#&~$":
        flat = flat.replace(mark, "\\" + mark)
    # GitHub looks for these in the rendered text, where escapes do not help but a zero-width space does.
    for word in ("@", "://", "www."):
        flat = flat.replace(word, word[0] + "\u200b" + word[1:])
    return flat


def code(example: Example) -> str:
    """An example as Markdown code, which escapes everything else; its token is in ⟦ ⟧."""
    place = words.passage(example)
    if place is None:
        return f"document {example.document}, position {example.position}"
    text = f"{place[0]}⟦{place[1]}⟧{place[2]}"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"
