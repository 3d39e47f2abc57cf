"""Scores of where features are said to be active on a planted lineage.

The truth is `Lineage.truth(c).places_against_parent`, for each planted feature at each checkpoint from the second on. A
feature without a latent is *missed*, and wrong. Where the truth is None, and for latents that match no planted feature,
`broadened`, `narrowed` and `displaced` are false positives; a second latent may say what is right for the feature that
it follows. `indeterminate` and no answer are wrong where there is a truth.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.planted_data import Lineage
from benchmarks.planted_score import MISSED, Matching
from benchmarks.planted_shape import CHANGED_PLACES, EVENT_PLACES, PLACES, SAME

Answers = Mapping[int, Mapping[int, str | None]]
"""Checkpoint (from 2) -> number of the feature -> its places."""


def score_places(lineage: Lineage, answers: Answers, matching: Matching) -> dict[str, Any] | None:
    """F1 by class, macro-F1 over the classes that the lineage has, and what went wrong most.

    `unchanged_flagged` is the share of the matched features with the `same` places that are said to be broadened,
    narrowed or displaced, of `unchanged`. `found_by_kind` is the share of the events that get the right word at their
    onset. None where there is no answer at all: results of a service without places.
    """
    if not any(place for part in answers.values() for place in part.values()):
        return None
    pairs = Counter(_pairs(lineage, answers, matching))
    classes = {place: _class(pairs, place) for place in PLACES}
    supported = [found["f1"] for found in classes.values() if found["support"]]
    unchanged = {said: n for (right, said), n in pairs.items() if right == SAME and said != MISSED}
    flagged = sum(n for said, n in unchanged.items() if said in CHANGED_PLACES)
    return {
        "macro_f1": float(np.mean(supported)),
        "f1": {place: found["f1"] for place, found in classes.items()},
        "classes": classes,
        "unchanged": sum(unchanged.values()),
        "unchanged_flagged": flagged / max(sum(unchanged.values()), 1),
        "found_by_kind": _found_by_kind(lineage, answers, matching),
        "confusion": {f"{right} -> {said}": n for (right, said), n in pairs.most_common() if right != said},
    }


def _pairs(lineage: Lineage, answers: Answers, matching: Matching) -> Iterator[tuple[str, str]]:
    """The right and the given answer of everything that is scored."""
    for checkpoint, given in sorted(answers.items()):
        truth = lineage.truth(checkpoint).places_against_parent
        for feature, right in enumerate(truth):
            said = _answer(given, matching, feature)
            if right is not None or said in CHANGED_PLACES:
                yield right or "undefined", said
        for number, place in given.items():
            if place in CHANGED_PLACES and number not in matching.numbers:
                follows = matching.follows.get(number)
                if follows is None or truth[follows] != place:
                    yield "nothing", place


def _answer(given: Mapping[int, str | None], matching: Matching, feature: int) -> str:
    latent = int(matching.latent[feature])
    return MISSED if latent < 0 else given.get(latent) or "none"


def _class(pairs: Counter[tuple[str, str]], place: str) -> dict[str, float]:
    hits = pairs[place, place]
    support = sum(n for (right, _), n in pairs.items() if right == place)
    given = sum(n for (_, said), n in pairs.items() if said == place)
    return {
        "precision": hits / max(given, 1),
        "recall": hits / max(support, 1),
        "f1": 2 * hits / max(support + given, 1),
        "support": support,
    }


def _found_by_kind(lineage: Lineage, answers: Answers, matching: Matching) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for event in lineage.events:
        if event.kind in EVENT_PLACES:
            said = _answer(answers[event.checkpoint], matching, event.feature)
            found.setdefault(event.kind, []).append(said == EVENT_PLACES[event.kind])
    return {kind: float(np.mean(right)) for kind, right in found.items()}
