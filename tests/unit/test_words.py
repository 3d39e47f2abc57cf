"""Findings in plain words, and text from outside that stays text."""

import re
from typing import Any

import pytest

from featurewatch.service.features import words
from featurewatch.service.features.schemas import Example, FeatureRow
from featurewatch.service.kit.text import plain
from featurewatch.service.reports.markdown import cell as _cell
from featurewatch.service.reports.markdown import code as _code
from featurewatch.service.verdicts.policy import Policy

POLICY = Policy()
HOSTILE = "a\x1b[31m\u202eb\r\n\u200b| <script>x</script> `c` [d](http://e) @f #1 *g* www.h"


def row(status: str, ratio: float | None = None, ends: tuple[float, float] | None = None, **values: Any) -> FeatureRow:
    """F17, whose verdict this is."""
    defaults: dict[str, Any] = {
        "id": "F17", "label": None, "auto_label": "“stop”, “halt”", "tags": [], "watched": False,
        "born_in": "v1", "origin": "fitted",
        "model_label": None, "model_label_by": None, "model_label_score": None, "model_label_score_ci": None,
        "top_tokens": [" stop", " halt"], "promoted_tokens": [], "generation": 1, "retired_in": None,
        "checkpoint": "v2", "baseline": "v1",
        "previous_status": "present", "change": 1.0, "strength_ratio": 0.97, "strength_ratio_ci": None,
        "orthogonal_ratio": 0.1, "q_value": 0.0016, "strength": 1.0, "direction_cosine": 0.9, "readability": 0.8,
        "firing_rate": 0.012, "firings": 361, "minimum_detectable_ratio": 0.22, "successors": [],
    }  # fmt: skip
    return FeatureRow(status=status, projection_ratio=ratio, projection_ratio_ci=ends, **(defaults | values))


def successor(name: str, cofiring: float, kind: str = "replaced") -> dict[str, Any]:
    return {"id": name, "kind": kind, "cofiring": cofiring}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            row("suppressed", 0.24, (0.18, 0.31)),
            "was suppressed: it is written along its direction at 24% (95% CI 18",
        ),
        (
            row("absent", -0.02, (-0.06, 0.03)),
            "no longer written along its direction (ratio -0.02, 95% CI -0.06 to 0.03).",
        ),
        (row("absent", 0.01, (0.0, 0.03)), "No other feature replaced it."),
        (
            row("absent", 0.01, (0.0, 0.03), successors=[successor("F20", 0.2)]),
            "F20 (on “cease”) is now active in its place, but carries",
        ),
        (
            row("replaced", 0.05, (0.02, 0.08), successors=[successor("F20", 0.92)]),
            "was replaced by F20 (on “cease”), which is active on 92% of its activation. F17",
        ),
        (
            row(
                "replaced", 0.05, (0, 0.1), successors=[successor("F20", 0.6, "split"), successor("F21", 0.3, "split")]
            ),
            "replaced by F20 (on “cease”) and F21 together, which are active on 60% and 30% of its activation.",
        ),
        (row("replaced", 0, (0, 0), successors=[successor("F20", 0.9, "merged")]), "and replaces other features too"),
        (
            row("relocated", 0.1, (0.05, 0.15)),
            "is written along another direction, at 97% of its former strength.",
        ),
        (row("relocated", 1.0, (0.9, 1.1)), "it is as strong as at v1, but along another direction."),
        (row("amplified", 3.1, (2.8, 3.4)), "at 3.1 times (95% CI 2.8 to 3.4 times) its former"),
        (row("emerged"), "emerged: v1 does not have it. It is active on 1.2% of the positions (361 firings)."),
        (
            row("emerged", 0.8, (0.7, 0.9), previous_status="absent"),
            "is back: it is written along its",
        ),
        (
            row("suppressed", 0.3, (0.2, 0.4), previous_status="replaced"),
            "is back, but suppressed: it is",
        ),
    ],
)
def test_what_happened(found: FeatureRow, said: str) -> None:
    names = {"F17": "F17 (on “stop”, “halt”)", "F20": "F20 (on “cease”)"}
    sentence = words.what_happened(found, names, POLICY)
    assert sentence.startswith("F17 (on “stop”, “halt”) ") and sentence.endswith(".")
    assert said in sentence


@pytest.mark.parametrize(
    ("q", "said"),
    [
        (
            0.05,
            "q = 0.05: of all findings here that are at least this certain, at most 5 in 100 are expected to be false.",
        ),
        (0.011, "q = 0.011: of all findings here that are at least this certain, at most 2 in 100"),
        (0.0016, "at most 2 in 1,000 are"),
        (0.00002, "q < 0.0001: of all findings here that are at least this certain, fewer than 1 in 1,000"),
    ],
)
def test_how_sure_is_said_of_the_findings_and_never_rounded_down(q: float, said: str) -> None:
    assert said in words.how_sure(row("suppressed", 0.2, (0.1, 0.3), q_value=q), POLICY)


def test_how_sure_where_no_q_value_decided() -> None:
    assert "No q-value" in words.how_sure(row("emerged", q_value=None), POLICY)
    assert "test for a return" in words.how_sure(row("emerged", 0.8, (0.7, 0.9), q_value=1.0), POLICY)
    assert "where the relocation happened" in words.how_sure(row("relocated", 1.0, (0.9, 1.1), q_value=1.0), POLICY)


def test_names() -> None:
    assert words.name_of("F1", " promises ", "“x”") == "F1 (“promises”)"
    assert words.name_of("F1", None, "“x”, “y”") == "F1 (on “x”, “y”)"
    assert words.name_of("F1", None, "before “x”") == "F1 (before “x”)"
    assert words.name_of("F1", "\u200b", None) == "F1"
    assert len(words.name_of("F1", "a" * 500, None)) < 100
    assert words.with_interval(-0.02, (-0.04, 0.004), 0.95) == "-2% (95% CI -4 to 0%)"
    assert words.between(0.9, 2.5) == "90% to 2.5 times"


def test_text_from_outside_stays_text() -> None:
    flat = plain(HOSTILE)
    assert not set(flat) & set("\x1b\u202e\r\n\u200b")
    cell = _cell(HOSTILE)
    assert "\n" not in cell and not re.search(r"(?<!\\)[`*_{}\[\]<>|#&]", cell)
    assert "@f" not in cell and "://" not in cell and "www." not in cell
    assert "\\<script\\>" in cell and "\\|" in cell


def test_examples_as_code() -> None:
    place = Example(
        document=3, position=9, text_before="a ``b` \n", token=" stop", text_after="\t<i>" + "x" * 99, activation=1
    )
    code = _code(place)
    assert code.startswith("``` a ``b` ⟦stop⟧ <i>xxx") and code.endswith("… ```") and "\n" not in code
    before, token, after = words.passage(place) or ("", "", "")
    assert (before, token) == ("a ``b` ", "stop") and len(after) < 70
    blank = place.model_copy(update={"token": "\n"})
    assert (words.passage(blank) or ("", "", ""))[1] == "␣"
    assert _code(place.model_copy(update={"token": None})) == "document 3, position 9"
