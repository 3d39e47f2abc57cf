"""The statuses of a verdict, one row each. Lists, SQL, commands, pages, scripts and docs derive from these rows.

To add a status, add a row with a code that was never used, say in `service.verdicts.judge` when a feature has it, and
describe it in docs/verdicts.md. Another vocabulary of verdicts is another subclass of `Vocabulary`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Self

Colour = Literal["green", "amber", "blue", "red", "violet", "magenta", "teal", "grey"]
"""Colour tokens. The stylesheet and the terminal say what each looks like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One word of a vocabulary."""

    code: int
    """How arrays store the word, 0 to 127. Stored data depend on it: a code is never changed and never reused."""
    word: str
    """How the API, the database's text columns and people write it. Never changed either."""
    severity: int
    """Reports list features with the lowest number first. Numbers leave room for words in between."""
    sign: str
    """One character, shown beside the word."""
    colour: Colour
    changed: bool = True
    """Whether the word says that the feature changed since the baseline."""
    alarms: bool = True
    """Whether it raises alerts of rules that do not list words."""
    gone: bool = False
    """Whether the feature is no longer there. Its reference level stays where it last was."""


class Vocabulary(StrEnum):
    """An enum of words, each with its row. Members are strings equal to their words."""

    row: Row

    # To the type checker, a lookup such as `Status("absent")` is a call of this.
    def __new__(cls, row: Row | str) -> Self:
        assert isinstance(row, Row)
        member = str.__new__(cls, row.word)
        member._value_ = row.word
        member.row = row
        return member

    __repr__ = str.__repr__

    @property
    def code(self) -> int:
        """How arrays store the word."""
        return self.row.code


class Status(Vocabulary):
    """What became of a feature, in the order in which counts are listed."""

    PRESENT = Row(code=0, word="present", severity=70, sign="●", colour="green", changed=False, alarms=False)
    SUPPRESSED = Row(code=1, word="suppressed", severity=30, sign="▼", colour="amber")
    AMPLIFIED = Row(code=2, word="amplified", severity=50, sign="▲", colour="blue")
    ABSENT = Row(code=3, word="absent", severity=10, sign="✕", colour="red", gone=True)
    RELOCATED = Row(code=4, word="relocated", severity=40, sign="↷", colour="violet")
    REPLACED = Row(code=5, word="replaced", severity=20, sign="⇄", colour="magenta", gone=True)
    EMERGED = Row(code=6, word="emerged", severity=60, sign="✦", colour="teal", alarms=False)
    INDETERMINATE = Row(code=7, word="indeterminate", severity=80, sign="?", colour="grey", changed=False, alarms=False)


class Places(Vocabulary):
    """Where a feature is active, compared with the baseline."""

    SAME = Row(code=0, word="same", severity=50, sign="=", colour="green", changed=False, alarms=False)
    BROADENED = Row(code=1, word="broadened", severity=20, sign="+", colour="blue")
    NARROWED = Row(code=2, word="narrowed", severity=30, sign="-", colour="amber")
    DISPLACED = Row(code=3, word="displaced", severity=10, sign="»", colour="violet")
    INDETERMINATE = Row(code=4, word="indeterminate", severity=60, sign="?", colour="grey", changed=False, alarms=False)


VOCABULARIES: tuple[type[Vocabulary], ...] = (Status, Places)
WORDS = {word.value: word.row for vocabulary in VOCABULARIES for word in vocabulary}
"""The rows of all words. A word of two vocabularies looks the same in both."""
BY_SEVERITY = tuple(sorted(Status, key=lambda status: status.row.severity))
CHANGED = tuple(status for status in BY_SEVERITY if status.row.changed)
# The API lists `suppressed` first among the defaults of alert rules, whatever is graver.
ALARMING = tuple(sorted((one for one in BY_SEVERITY if one.row.alarms), key=lambda one: one != Status.SUPPRESSED))
GONE = frozenset(status for status in Status if status.row.gone)
BY_CODE = {status.code: status for status in Status}
PLACES_CHANGED = tuple(places for places in sorted(Places, key=lambda one: one.row.severity) if places.row.changed)
PLACES_ALARMING = tuple(places for places in PLACES_CHANGED if places.row.alarms)
PLACES_BY_CODE = {places.code: places for places in Places}
N_CODES = max(BY_CODE) + 1
"""Length of an array that is indexed by code."""
