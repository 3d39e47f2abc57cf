"""The table of statuses: what is stored keeps its meaning, and everything that shows statuses shows these."""

import re
from pathlib import Path

import pytest

from featurewatch.service.verdicts.statuses import BY_CODE, BY_SEVERITY, Row, Status, Vocabulary

ROOT = Path(__file__).parents[3]
STORED = {
    "present": 0, "suppressed": 1, "amplified": 2, "absent": 3, "relocated": 4, "replaced": 5, "emerged": 6,
    "indeterminate": 7,
}  # fmt: skip
"""As packed tables and text columns of existing installations have them."""


def test_codes_and_words_are_those_of_stored_data() -> None:
    assert STORED.items() <= {status.value: status.code for status in Status}.items()
    assert all(0 <= status.code <= 127 for status in Status), "stored in one signed byte; negative: none"


def test_codes_severities_and_signs_are_unique() -> None:
    for column in ("code", "severity", "sign"):
        assert len({getattr(status.row, column) for status in Status}) == len(Status), column


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


def test_another_vocabulary_has_rows_of_the_same_class() -> None:
    class Places(Vocabulary):
        SAME = Row(code=0, word="same", severity=2, sign="=", colour="grey", changed=False, alarms=False)
        BROADENED = Row(code=1, word="broadened", severity=1, sign="↔", colour="blue")

    assert Places("broadened").code == 1 and not Places.SAME.row.alarms


@pytest.mark.parametrize("file", ["static/page.css", "templates/report.html"])
def test_every_colour_is_in_the_stylesheets(file: str) -> None:
    text = (ROOT / "service" / "web" / file).read_text(encoding="utf-8")
    assert {status.row.colour for status in Status} <= set(re.findall(r"--([a-z]+): light-dark", text))
    assert file.endswith("html") or all(f".c-{status.row.colour} {{" in text for status in Status)


def test_the_docs_name_every_status() -> None:
    rule = (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")
    assert all(f"\n| {status} | " in rule for status in Status)
