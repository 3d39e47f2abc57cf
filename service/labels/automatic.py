"""The automatic label of a feature: what the tokens it fires on have in common, and those it promotes.

A rule, not a judgement: it says no more than the tokens show. `“stop”, “halt”`, `numbers, before “%”`, `“…ing”`.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from featurewatch.service.features.words import plain

_FEW = 5
"""Tokens that are looked at, the first ones. Where there are so many, one of them may be of another kind."""
_NAMED = 3
_LETTERS = 24
_SHORTEST = 3
"""Letters of a beginning or an end that words share."""
_LATIN = "LATIN"
_REMEMBERED = 32_768
"""Words whose nature is remembered: a first fit asks of ten tokens of each of tens of thousands of features."""


def auto_label(top_tokens: Sequence[str], promoted_tokens: Sequence[str]) -> str | None:
    """The label, or None where there is no token to go by.

    top_tokens: on which it fires most; where these share nothing, the first of them are named. promoted_tokens: whose
    logits it raises most; they are named only where they share something, for most features' do not.
    """
    fires = shared(top_tokens[:_FEW]) or _listed(top_tokens)
    follows = shared(promoted_tokens[:_FEW])
    parts = [*([fires] if fires else []), *([f"before {follows}"] if follows else [])]
    return ", ".join(parts) or None


def shared(tokens: Sequence[str]) -> str | None:
    """What tokens have in common: a word, a kind of characters, a beginning, an end, a script; None: nothing."""
    if not tokens:
        return None
    words = [_word(token) for token in tokens]
    # A single token is itself, whatever it is made of; blanks have no other name.
    if not any(words):
        return "line breaks" if all("\n" in token for token in tokens) else "white space"
    subsets = [words]
    if len(words) >= _FEW:
        subsets += [words[:place] + words[place + 1 :] for place in range(len(words))]
    for ask in (_same, _kind, _beginning, _end, _script):
        found = next(filter(None, map(ask, subsets)), None)
        if found:
            return found
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


@lru_cache(maxsize=_REMEMBERED)
def _kinds(word: str) -> frozenset[str]:
    return frozenset(kind for kind, fits in _KINDS.items() if word and fits(word))


def _beginning(words: list[str]) -> str | None:
    found = _common([word.casefold() for word in words])
    return _quoted(f"{found}…") if found else None


def _end(words: list[str]) -> str | None:
    found = _common([word.casefold()[::-1] for word in words])[::-1]
    return _quoted(f"…{found}") if found else None


def _common(words: list[str]) -> str:
    """The letters that all words begin with; empty where these are too few to say anything."""
    first, last = min(words), max(words)  # in order, these two differ soonest
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length] if length >= _SHORTEST and first[:length].isalpha() else ""


def _script(words: list[str]) -> str | None:
    """The script of words that are not Latin, by the names of their characters."""
    each = [_scripts(word) for word in words]
    scripts = set[str]().union(*each)
    if len(scripts) != 1 or not all(each):
        return None
    script = scripts.pop()
    if script in (_LATIN, "?"):
        return None
    return f"{script if script == 'CJK' else script.title()} characters"


@lru_cache(maxsize=_REMEMBERED)
def _scripts(word: str) -> frozenset[str]:
    return frozenset(unicodedata.name(c, "?").split()[0] for c in word if c.isalpha())


def _listed(tokens: Sequence[str]) -> str:
    """The first few different tokens."""
    words = {word.casefold(): word for word in map(_word, reversed(tokens)) if word}
    return ", ".join(_quoted(word) for word in list(words.values())[::-1][:_NAMED])


@lru_cache(maxsize=_REMEMBERED)
def _word(token: str) -> str:
    return plain(token, _LETTERS)


def _quoted(word: str) -> str:
    return f"“{word}”"
