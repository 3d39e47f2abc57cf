"""Effects of a feature's direction against forward passes written out by hand."""

from typing import Any

import pytest
import torch

from benchmarks.attribution import ablated
from featurewatch.workers.dependencies.attribution import Options, attribute
from featurewatch.workers.dependencies.effects import Answers, activations, answer_margins, causal_effects
from featurewatch.workers.dependencies.reading import PER_DOCUMENT, Passage, choose_tokens, deal_folds, watching
from tests.unit.dependencies.small import reading, target


def head(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.randn(32, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_ablation_and_amplification_are_edits_where_the_feature_fires() -> None:
    of = reading()
    asked = target(of, "resid_post.0", 5)
    of.skippable = {"resid_post.0": [of.model.layers[0]]}
    got = causal_effects(of, head, asked, directions=3, folds=3, seed=0)
    known, dense = of.dictionaries["resid_post.0"], torch.from_numpy(of.code.to_scipy().toarray()).double()
    ablate, logits = torch.zeros(3).double(), torch.zeros(50).double()
    for number, passage in enumerate(of.passages):
        at = asked.tokens[number]
        if not len(at):
            continue
        added = torch.zeros(len(passage.ids), 32).double()
        added[passage.tokens] = -dense[passage.rows, 5:6] * known.decoder[5]
        plain = head(of.model(input_ids=passage.ids[None]).last_hidden_state[0, at])
        handle = of.hook_points[0].module.register_forward_hook(lambda _m, _i, out, added=added: out + added)
        edited = head(of.model(input_ids=passage.ids[None]).last_hidden_state[0, at])
        handle.remove()
        p, q = plain.softmax(1), edited.softmax(1)
        ablate[passage.fold] += (p * (p / q).log()).sum()
        logits += (plain - edited).sum(0)
    assert torch.allclose(got.ablate, ablate, rtol=1e-3, atol=1e-5)
    assert torch.allclose(got.logits.double(), logits - logits.mean(), rtol=1e-3, atol=1e-3)
    assert got.count.sum() == sum(map(len, asked.tokens))
    assert got.random.shape == (3, 3) and (got.random[:, got.count > 0] > 0).all()
    assert not torch.equal(got.amplify, got.ablate)


def test_a_direction_that_nothing_reads_has_no_effect() -> None:
    of = reading()
    known = of.dictionaries["resid_post.2"]
    known.decoder[5] = 0
    got = causal_effects(of, head, target(of, "resid_post.2", 5), directions=1, folds=3, seed=0)
    assert not got.ablate.any() and not got.logits.any()


def test_margins_of_answers_are_edits_where_the_read_out_fires() -> None:
    of = reading()
    of.skippable = {"resid_post.0": [of.model.layers[0]]}
    texts = [Answers(p.ids, 3, 7) for p in of.passages] + [Answers(of.passages[0].ids, 7, 3)]
    got = answer_margins(of, head, "resid_post.0", 5, texts, directions=3, seed=0)
    assert got.shape == (6, 5)
    assert torch.allclose(got[:, 4], -got[:, 0])
    known, place, silent = of.dictionaries["resid_post.0"], of.hook_points[0], 0
    for number, passage in enumerate(of.passages):
        with watching([place]) as seen:
            of.model(input_ids=passage.ids[None])
        fires = known.read(seen["resid_post.0"][0], 5).clamp_min(0)
        silent += int((fires == 0).sum())
        for row, sign in ((0, 0), (1, -1), (2, 1)):
            added = sign * fires[:, None] * known.decoder[5]
            handle = place.module.register_forward_hook(lambda _m, _i, out, added=added: out + added)
            logits = head(of.model(input_ids=passage.ids[None]).last_hidden_state[0, -1])
            handle.remove()
            assert float(got[row, number]) == pytest.approx(float(logits[3] - logits[7]), rel=1e-3, abs=1e-4)
    assert 0 < silent < sum(len(passage.ids) for passage in of.passages)


def test_patching_takes_a_feature_out_everywhere() -> None:
    of = reading()
    targets = [target(of, "resid_post.2", 4), target(of, "mlp_out.1", 2)]
    plain, without = ablated(of, "resid_post.0", [7], targets, 30)
    of.skippable = {"resid_post.0": [of.model.layers[0]]}
    assert torch.equal(without, ablated(of, "resid_post.0", [7], targets, 30)[1])
    assert not vars(of.model.layers[0]).get("forward")
    got: Any = attribute(of, targets, Options(method="gradient", folds=3))
    assert torch.allclose(plain, torch.stack([t.value.sum() / t.count.sum() for t in got]), rtol=1e-6)
    assert (plain - without).abs().min() > 1e-6


def test_patching_agrees_with_attribution_where_the_model_is_linear() -> None:
    """From a layer's output to itself plus nothing: the gradient of a read-out is the read-out."""
    of = reading(places=["mlp_out.1", "resid_post.1"])
    asked = [target(of, "resid_post.1", 3)]
    (got,) = attribute(of, asked, Options(method="gradient", folds=3))
    given = got.hook_points["mlp_out.1"].features.sum(0) / got.count.sum()
    before, *after = ablated(of, "mlp_out.1", range(4), asked, 64)
    for column in range(4):
        assert float(before - after[column]) == pytest.approx(float(given[column]), rel=1e-4, abs=1e-6)


def test_activations_are_a_column_of_the_code() -> None:
    of = reading()
    assert torch.equal(activations(of.code, 3), torch.from_numpy(of.code.to_scipy().toarray()[:, 3]).double())
    with watching(of.hook_points) as seen:
        of.model(input_ids=of.passages[0].ids[None])
    assert set(seen) == {place.name for place in of.hook_points}


def test_positions_are_spread_over_documents_before_any_is_used_up() -> None:
    tokens = torch.arange(40)
    passages = [Passage(torch.zeros(40, dtype=torch.int64), tokens + 40 * i, tokens, i) for i in range(5)]
    fires, valid = torch.ones(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool)
    valid[:40] = False
    target = choose_tokens(passages, fires, valid, "x", 0, 3 * PER_DOCUMENT, seed=1)
    assert sorted(map(len, target.tokens)) == [0, 0] + [PER_DOCUMENT] * 3 and not len(target.tokens[0])
    more = choose_tokens(passages, fires, valid, "x", 0, 100, seed=1)
    assert sum(map(len, more.tokens)) == 100
    assert all(len(part.unique()) == len(part) for part in more.tokens)
    everything = choose_tokens(passages, fires, valid, "x", 0, 1000, seed=1)
    assert sum(map(len, everything.tokens)) == 160
    again = choose_tokens(passages, fires, valid, "x", 0, 100, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(more.tokens, again.tokens, strict=True))


def test_folds_are_those_of_the_document_whatever_else_is_read() -> None:
    folds = deal_folds(range(100, 150), 20)
    assert set(folds.values()) == set(range(20))
    assert folds == deal_folds(range(100, 150), 20)
