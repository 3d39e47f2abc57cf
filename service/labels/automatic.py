"""Automatic labels: what the tokens that a feature fires on, and those it promotes, have in common.

The labels state only what the tokens show: `“stop”, “halt”`, `numbers, before “%”`, `“…ing”`.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from featurewatch.service.kit.text import plain

_FEW = 5
"""Number of first tokens to examine. With this many, one may be an exception."""
_NAMED = 3
_MAX_LETTERS = 24
_MIN_SHARED = 3
"""Shortest shared prefix or suffix, in letters."""
_LATIN = "LATIN"
_CACHED = 32_768
"""Cached words: a first fit labels tens of thousands of features from ten tokens each."""


def auto_label(top_tokens: Sequence[str], promoted_tokens: Sequence[str]) -> str | None:
    """The label, or None without tokens.

    `top_tokens`, on which the feature fires most, are listed if they have nothing in common. `promoted_tokens`, whose
    logits it raises most, are mentioned only if they have something in common, because most do not.
    """
    fires = shared(top_tokens[:_FEW]) or _listed(top_tokens)
    follows = shared(promoted_tokens[:_FEW])
    parts = [*([fires] if fires else []), *([f"before {follows}"] if follows else [])]
    return ", ".join(parts) or None


def shared(tokens: Sequence[str]) -> str | None:
    """What tokens have in common: a word, a kind of character, a prefix, a suffix or a script. None if nothing."""
    if not tokens:
        return None
    words = [_word(token) for token in tokens]
    if not any(words):
        return "line breaks" if all("\n" in token for token in tokens) else "white space"
    subsets = [words]
    if len(words) >= _FEW:
        subsets += [words[:place] + words[place + 1 :] for place in range(len(words))]
    for rule in (_same, _kind, _prefix, _suffix, _script):
        label = next(filter(None, map(rule, subsets)), None)
        if label:
            return label
    return None


def _same(words: list[str]) -> str | None:
    folded = {word.casefold() for word in words}
    return _quoted(words[0]) if len(folded) == 1 and words[0] else None


def _kind(words: list[str]) -> str | None:
    common = frozenset.intersection(*map(_kinds, words))
    return next((kind for kind in _KINDS if kind in common), None)


_KINDS: dict[str, Callable[[str], bool]] = {
    "numbers": lambda word: word.replace(",", "").replace(".", "").isnumeric(),
    "punctuation": lambda word: all(unicodedata.category(c)[0] == "P" for c in word),
    "symbols": lambda word: all(unicodedata.category(c)[0] in "PS" for c in word),
    "words in capitals": lambda word: len(word) > 1 and word.isalpha() and word.isupper(),
}


@lru_cache(maxsize=_CACHED)
def _kinds(word: str) -> frozenset[str]:
    return frozenset(kind for kind, fits in _KINDS.items() if word and fits(word))


def _prefix(words: list[str]) -> str | None:
    prefix = _common([word.casefold() for word in words])
    return _quoted(f"{prefix}…") if prefix else None


def _suffix(words: list[str]) -> str | None:
    suffix = _common([word.casefold()[::-1] for word in words])[::-1]
    return _quoted(f"…{suffix}") if suffix else None


def _common(words: list[str]) -> str:
    """The letters that all words start with; empty if there are fewer than _MIN_SHARED."""
    first, last = min(words), max(words)  # these two share the shortest prefix
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length] if length >= _MIN_SHARED and first[:length].isalpha() else ""


def _script(words: list[str]) -> str | None:
    """The script of non-Latin words, from the Unicode names of their characters."""
    each = [_scripts(word) for word in words]
    scripts = set[str]().union(*each)
    if len(scripts) != 1 or not all(each):
        return None
    script = scripts.pop()
    if script in (_LATIN, "?"):
        return None
    return f"{script if script == 'CJK' else script.title()} characters"


@lru_cache(maxsize=_CACHED)
def _scripts(word: str) -> frozenset[str]:
    return frozenset(unicodedata.name(c, "?").split()[0] for c in word if c.isalpha())


def _listed(tokens: Sequence[str]) -> str:
    """The first few distinct tokens."""
    words = {word.casefold(): word for word in map(_word, reversed(tokens)) if word}
    return ", ".join(_quoted(word) for word in list(words.values())[::-1][:_NAMED])


@lru_cache(maxsize=_CACHED)
def _word(token: str) -> str:
    return plain(token, _MAX_LETTERS)


def _quoted(word: str) -> str:
    return f"“{word}”"
