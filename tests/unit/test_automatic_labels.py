"""Automatic labels say what tokens have in common, and nothing more."""

import pytest

from featurewatch.service.labels.automatic import auto_label

MIXED = [" cat", " 7", "!", " the", "ing"]


@pytest.mark.parametrize(
    ("top", "promoted", "label"),
    [
        ([" stop", "Stop", "STOP"], [], "“stop”"),
        ([" stop"], MIXED, "“stop”"),
        ([" stop", " halt"], [], "“stop”, “halt”"),
        (["\n", " x", "x", " y", " z", " w"], MIXED, "“x”, “y”, “z”"),
        ([" promise", " promised", "promises", " Promising"], [], "“promis…”"),
        ([" going", "reading", " being"], [], "“…ing”"),
        ([" 1", "23", " 4,500"], [], "numbers"),
        ([" 1", "23", " 4."], ["%", " %"], "numbers, before “%”"),
        ([",", ".", ";"], [], "punctuation"),
        (["+", "=", ","], [], "symbols"),
        (["\n", "\n\n"], [], "line breaks"),
        (["  ", "\n"], [], "white space"),
        ([" NATO", "UN"], [], "words in capitals"),
        ([" дом", " кот"], [], "Cyrillic characters"),
        (["日本", "語"], [], "CJK characters"),
        ([" a", " b"], [" time", " times", "Time", " timing", " dog"], "“a”, “b”, before “tim…”"),
        ([" a", " b"], [" time", " times", "Time", " cat", " dog"], "“a”, “b”"),
        ([], [" time", "time"], "before “time”"),
        ([], MIXED, None),
        ([], [], None),
        (["\x1b[31mred\u202e", "blue"], [], "“[31mred”, “blue”"),
        (["a" * 99, "b"], [], f"“{'a' * 23}…”, “b”"),
    ],
)
def test_what_is_said(top: list[str], promoted: list[str], label: str | None) -> None:
    assert auto_label(top, promoted) == label
