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
    """What there is to know about one word of a vocabulary."""

    code: int
    """How arrays store the word, 0 to 127. Stored data depend on it: a code is never changed and never reused."""
    word: str
    """How the API, the database's text columns and people write it. Never changed either."""
    severity: int
    """Reports list features with the lowest number first."""
    sign: str
    """One character, shown beside the word."""
    colour: Colour
    changed: bool = True
    """Whether the feature changed against the baseline, as far as can be told."""
    alarms: bool = True
    """Whether alert rules that name no words are raised by it."""
    gone: bool = False
    """Whether the feature is no longer there. Its reference level stays where it last was."""


class Vocabulary(StrEnum):
    """Words with a row each. Members are strings: they equal their words and are written as such."""

    row: Row

    # The type checker takes a lookup, `Status("absent")`, for a call of this.
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

    PRESENT = Row(code=0, word="present", severity=7, sign="●", colour="green", changed=False, alarms=False)
    SUPPRESSED = Row(code=1, word="suppressed", severity=3, sign="▼", colour="amber")
    AMPLIFIED = Row(code=2, word="amplified", severity=5, sign="▲", colour="blue")
    ABSENT = Row(code=3, word="absent", severity=1, sign="✕", colour="red", gone=True)
    RELOCATED = Row(code=4, word="relocated", severity=4, sign="↷", colour="violet")
    REPLACED = Row(code=5, word="replaced", severity=2, sign="⇄", colour="magenta", gone=True)
    EMERGED = Row(code=6, word="emerged", severity=6, sign="✦", colour="teal", alarms=False)
    INDETERMINATE = Row(code=7, word="indeterminate", severity=8, sign="?", colour="grey", changed=False, alarms=False)


BY_SEVERITY = tuple(sorted(Status, key=lambda status: status.row.severity))
CHANGED = tuple(status for status in BY_SEVERITY if status.row.changed)
# The API lists `suppressed` first among the defaults of alert rules, whatever is graver.
ALARMING = tuple(sorted((one for one in BY_SEVERITY if one.row.alarms), key=lambda one: one != Status.SUPPRESSED))
GONE = frozenset(status for status in Status if status.row.gone)
BY_CODE = {status.code: status for status in Status}
N_CODES = max(BY_CODE) + 1
"""Length of an array that is indexed by code."""
