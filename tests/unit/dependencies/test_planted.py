"""Planted circuits: a feature is computed from A and B, in the next version from D and E, on the same inputs."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import sparse

from benchmarks.dependency_models import Circuit, make_circuit, make_model, write_text
from featurewatch.service.dependencies import judge
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.activations.models.hooks import choose_hook_points
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.dependencies.attribution import METHODS, Attribution, Method, Options, attribute
from featurewatch.workers.dependencies.effects import activations, causal_effects
from featurewatch.workers.dependencies.reading import Dictionary, Passage, Reading, choose_tokens, watching

EARLY, LATE = "resid_post.0", "resid_post.1"
FOLDS = 20


@cache
def circuit() -> Circuit:
    return make_circuit(seed=0)


@cache
def reading(rewired: bool) -> tuple[Reading, torch.nn.Module]:
    """The planted model, with the planted code and directions as its dictionary; no token is left out."""
    model, directions = make_model(circuit(), rewired=rewired)
    model.requires_grad_(False)
    texts = write_text(circuit(), documents=60, length=24, seed=1)
    code = Code.from_scipy(sparse.csr_matrix(np.concatenate([circuit().table(text) for text in texts])))
    passages = [
        Passage(torch.from_numpy(text), torch.arange(24 * i, 24 * i + 24), torch.arange(24), i % FOLDS)
        for i, text in enumerate(texts)
    ]
    points = choose_hook_points(model.model, [EARLY, LATE])
    mean = model.model.embed_tokens.weight.mean(0)
    mean = mean - directions.T @ (directions @ mean)  # what all words share
    late = Dictionary(mean, 1.0, directions, torch.zeros(32), directions.T.contiguous(), torch.zeros(len(directions)))
    decoder = directions.clone()
    decoder[circuit().n_properties :] = 0  # written only later
    known = {EARLY: replace(late, decoder=decoder), LATE: late}
    return Reading(model.model, list(points), known, code, passages), model.lm_head


def graph(rewired: bool, method: Method) -> dict[int, Attribution]:
    """Of all features that the last layer computes."""
    of, _ = reading(rewired)
    columns = list(circuit().edges(rewired))
    valid = torch.ones(of.code.n, dtype=torch.bool)
    targets = [choose_tokens(of.passages, activations(of.code, c) > 0, valid, LATE, c, 200, 0) for c in columns]
    return dict(zip(columns, attribute(of, targets, Options(method=method, steps=16)), strict=True))


@pytest.mark.parametrize("rewired", [False, True])
def test_the_model_does_what_is_planted(rewired: bool) -> None:
    of, _ = reading(rewired)
    code = torch.from_numpy(of.code.to_scipy().toarray())
    for number in (0, 7, 31):
        with watching(of.hook_points) as seen:
            of.model(input_ids=of.passages[number].ids[None])
        written = seen[LATE][0] @ of.dictionaries[LATE].decoder.T
        # The first word has none before it: there the head can only look at the word itself.
        assert torch.allclose(written[1:], code[of.passages[number].rows][1:], atol=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rewired", [False, True])
def test_the_planted_edges_are_found(method: Method, rewired: bool) -> None:
    for target, found in graph(rewired, method).items():
        edges = (found.hook_points[EARLY].features.sum(0) / found.count.sum()).numpy()
        expected = circuit().edges(rewired)[target]
        strongest = np.argsort(-np.abs(edges))[: len(expected)]
        assert set(strongest.tolist()) == expected, (target, edges)
        weakest, others = np.abs(edges[strongest]).min(), np.delete(edges, [*expected, target])
        # The rest is what a feature gives by being in the same words: nothing, in a linear model.
        assert np.abs(others).max() < 0.1 * weakest, (target, edges)


def test_exactly_what_was_rewired_is_told() -> None:
    before, after = graph(False, "gradient"), graph(True, "gradient")
    rewired, *others = circuit().edges(False)

    def sums(found: Attribution) -> tuple[judge.Doubles, judge.Doubles]:
        return found.hook_points[EARLY].features.double().numpy(), found.count.double().numpy()

    told = {t: judge.compare(sums(before[t]), sums(after[t]), Policy(), targets=len(before)) for t in before}
    changes = told[rewired].changes
    assert {c.index for c in changes if c.kind == "lost"} == set(circuit().pairs[0])
    assert {c.index for c in changes if c.kind == "gained"} == set(circuit().other)
    assert len(changes) == 4 and told[rewired].rewired
    for other in others:
        assert told[other].rewired is False and not told[other].changes


def test_what_a_feature_writes_matters_to_the_next_token() -> None:
    of, head = reading(False)
    valid = torch.ones(of.code.n, dtype=torch.bool)
    target = choose_tokens(of.passages, activations(of.code, 12) > 0, valid, LATE, 12, 60, 0)
    got = causal_effects(of, head, target, directions=4, folds=FOLDS, seed=0)
    assert got.ablate.sum() > 0 and got.random.sum(1).min() > 0
    assert got.logits.shape == (len(circuit().words) + 1,)
