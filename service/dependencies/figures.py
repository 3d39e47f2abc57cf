"""Turns sums by fold into figures for display: edges with intervals, unexplained rest, effects."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from featurewatch.service.dependencies.judge import edges, enough, replicates
from featurewatch.service.dependencies.schemas import (
    AnswerEffect,
    Edge,
    Effect,
    Graph,
    LogitEdge,
    SourcePlace,
    TokenEdge,
)
from featurewatch.service.dependencies.store import Profile
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.verdicts.judge import standard_error
from featurewatch.service.verdicts.policy import Policy

MOST_EDGES, MOST_TOKENS, MOST_LOGITS = 64, 16, 10
Doubles = NDArray[np.float64]


def graph(
    profile: Profile,
    constant: float,
    tokens: tuple[Sequence[str], Doubles],
    logits: Sequence[tuple[str, float]],
    policy: Policy,
) -> Graph:
    """The graph of one target. `tokens` is (strings, sums [K, tokens]) with equal strings already summed."""
    keys = [(hook, int(number)) for hook, place in profile.places.items() for number in place.numbers]
    strongest, rest = [], 0.0
    if keys:
        judged = edges(np.concatenate([place.sums for place in profile.places.values()], 1), profile.counts, policy)
        order = np.argsort(-np.abs(judged.weight))
        kept = [int(i) for i in order if judged.kept[i]][:MOST_EDGES]
        strongest = [
            Edge(
                feature=feature_id(keys[i][1]), hook_point=keys[i][0], weight=_round(judged.weight[i]),
                ci=(_round(judged.lo[i]), _round(judged.hi[i])), q=float(judged.q[i]),
            )
            for i in kept
        ]  # fmt: skip
        rest = float(judged.weight.sum() - judged.weight[kept].sum())
    token_edges, other = _tokens(*tokens, profile.counts, policy)
    return Graph(
        value=_round(profile.values.sum() / profile.counts.sum()),
        constant=_round(constant),
        documents=int((profile.counts > 0).sum()),
        sources=[_place(hook, profile, constant) for hook in profile.places],
        edges=strongest,
        other_features=_round(rest),
        tokens=token_edges,
        other_tokens=other,
        logits=[LogitEdge(token=token, change=_round(change)) for token, change in logits],
    )


def effect(
    counts: Doubles, ablate: Doubles, amplify: Doubles, random: Doubles, answers: dict[str, Doubles], policy: Policy
) -> Effect | None:
    """Effects from sums by fold: [K], [K], [K], [directions, K]. None if there are fewer than three folds.

    `answers` maps signatures to margins [3 + directions, texts]: unchanged, ablated, amplified, along random
    directions. A signature with a single text has no interval and is left out.
    """
    if not enough(counts):
        return None
    both = [replicates(sums, counts) for sums in (ablate, amplify, random.mean(0))]
    reach = float(stdtrit(len(both[0]) - 2, 0.5 + policy.confidence / 2))
    ends = []
    for values in both[:2]:
        error = reach * float(standard_error(values))
        ends.append((_round(max(values[0] - error, 0.0)), _round(values[0] + error)))
    beyond = both[0] - both[2]
    error = max(float(standard_error(beyond)), 1e-12)
    p = float(stdtr(len(beyond) - 2, -beyond[0] / error))
    most = float((random.sum(1) / counts.sum()).max())
    effective = bool(p <= policy.fdr and both[0][0] > most)
    return Effect(
        positions=int(counts.sum()), ablate=_round(both[0][0]), ablate_ci=ends[0], amplify=_round(both[1][0]),
        amplify_ci=ends[1], random=_round(both[2][0]), random_most=_round(most), directions=len(random),
        effective=effective,
        answers=[answer(name, margins, policy) for name, margins in answers.items() if margins.shape[1] > 1],
        text=_describe(float(both[0][0]), float(both[2][0]), effective),
    )  # fmt: skip


def answer(signature: str, margins: Doubles, policy: Policy) -> AnswerEffect:
    """The effect on a signature's answers, from at least two texts."""
    changes = margins[1:] - margins[0]
    texts, means = changes.shape[1], changes.mean(1)
    reach = stdtrit(texts - 1, 0.5 + policy.confidence / 2) * changes[:2].std(1, ddof=1) / texts**0.5
    low, high = means[:2] - reach, means[:2] + reach
    most = float(np.abs(means[2:]).max())
    return AnswerEffect(
        signature=signature, texts=texts, margin=_round(margins[0].mean()), ablate=_round(means[0]),
        ablate_ci=(_round(low[0]), _round(high[0])), amplify=_round(means[1]),
        amplify_ci=(_round(low[1]), _round(high[1])), random_most=_round(most),
        effective=bool(low[0] * high[0] > 0 and abs(means[0]) > most),
    )  # fmt: skip


def _describe(ablate: float, random: float, effective: bool) -> str:
    if not effective:
        return "It is written, but ablating it changes the next token no more than random directions of its norm do."
    factor = f"{ablate / random:.1f} times as much as" if random > 0 else "more than"
    return f"Ablating it changes the next token {factor} random directions of its norm do."


def _place(hook: str, profile: Profile, constant: float) -> SourcePlace:
    place = profile.places[hook]
    n = profile.counts.sum()
    features, (bias, error, uncoded) = float(place.sums.sum() / n), (place.rest.sum(0) / n).tolist()
    total, target = features + bias + error + uncoded, float(profile.values.sum() / n) - constant
    return SourcePlace(
        hook_point=hook, features=_round(features), bias=_round(bias), error=_round(error), uncoded=_round(uncoded),
        explained=_ratio(features, total), total=_ratio(total, target),
    )  # fmt: skip


def _tokens(names: Sequence[str], sums: Doubles, counts: Doubles, policy: Policy) -> tuple[list[TokenEdge], float]:
    if not len(names):
        return [], 0.0
    judged = edges(sums, counts, policy)
    order = np.argsort(-np.abs(judged.weight))
    kept = [int(i) for i in order if judged.kept[i]][:MOST_TOKENS]
    strongest = [
        TokenEdge(token=names[i], weight=_round(judged.weight[i]), ci=(_round(judged.lo[i]), _round(judged.hi[i])))
        for i in kept
    ]
    return strongest, _round(judged.weight.sum() - judged.weight[kept].sum())


def _ratio(part: float, whole: float) -> float | None:
    return _round(part / whole) if abs(whole) > 1e-9 else None


def _round(value: float) -> float:
    return round(float(value), 6)
