"""The table of statuses: what is stored keeps its meaning, and everything that shows statuses shows these."""

import re
from pathlib import Path

import pytest

from featurewatch.service.verdicts.statuses import (
    BY_CODE,
    BY_SEVERITY,
    PLACES_ALARMING,
    PLACES_CHANGED,
    VOCABULARIES,
    WORDS,
    Places,
    Status,
    Vocabulary,
)

ROOT = Path(__file__).parents[3]
STORED = {
    "present": 0, "suppressed": 1, "amplified": 2, "absent": 3, "relocated": 4, "replaced": 5, "emerged": 6,
    "indeterminate": 7,
}  # fmt: skip
"""As packed tables and text columns of existing installations have them."""
STORED_PLACES = {"same": 0, "broadened": 1, "narrowed": 2, "displaced": 3, "indeterminate": 4}


def test_codes_and_words_are_those_of_stored_data() -> None:
    for words, stored in ((Status, STORED), (Places, STORED_PLACES)):
        assert stored.items() <= {word.value: word.code for word in words}.items()
        assert all(0 <= word.code <= 127 for word in words), "stored in one signed byte; negative: none"


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_codes_severities_and_signs_are_unique(vocabulary: type[Vocabulary]) -> None:
    for column in ("code", "severity", "sign"):
        assert len({getattr(word.row, column) for word in vocabulary}) == len(vocabulary), column


def test_a_word_of_two_vocabularies_looks_the_same_in_both() -> None:
    for word in (word for vocabulary in VOCABULARIES for word in vocabulary):
        assert (WORDS[word].sign, WORDS[word].colour) == (word.row.sign, word.row.colour)


def test_statuses_are_their_words() -> None:
    for status in Status:
        assert Status(status.value) is status is BY_CODE[status.code]
        assert (str(status), f"{status}", repr(status), hash(status)) == (
            status.value, status.value, repr(status.value), hash(status.value)
        )  # fmt: skip
    with pytest.raises(ValueError, match="not a valid Status"):
        Status("gone")


def test_changes_come_before_the_rest() -> None:
    flags = [status.row.changed for status in BY_SEVERITY]
    assert flags == sorted(flags, reverse=True)
    assert all(status.row.changed for status in Status if status.row.alarms or status.row.gone)


def test_places_that_alarm_are_changes() -> None:
    assert PLACES_ALARMING == PLACES_CHANGED == (Places.DISPLACED, Places.BROADENED, Places.NARROWED)


@pytest.mark.parametrize("file", ["static/page.css", "templates/report.html"])
def test_every_colour_is_in_the_stylesheets(file: str) -> None:
    text = (ROOT / "service" / "web" / file).read_text(encoding="utf-8")
    colours = {row.colour for row in WORDS.values()}
    assert colours <= set(re.findall(r"--([a-z]+): light-dark", text))
    assert file.endswith("html") or all(f".c-{colour} {{" in text for colour in colours)


def test_the_docs_name_every_status() -> None:
    rule = (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")
    assert all(f"\n| {status} | " in rule for status in Status)
