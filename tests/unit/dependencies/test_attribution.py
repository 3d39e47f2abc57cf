"""Attributions against slow references: a backward pass for every single position, in float64."""

import pytest
import torch

from featurewatch.workers.dependencies.attribution import Attribution, HookPointSums, Options, attribute
from featurewatch.workers.dependencies.reading import Reading, Target, watching
from featurewatch.workers.errors import RunError
from tests.unit.dependencies.small import OPTIONS, PLACES, reading, target


def values_at(of: Reading, passage: int, target: Target, x: torch.Tensor) -> torch.Tensor:
    """Pre-activations of a target from the raw activations [t, d] of its place."""
    return of.dictionaries[target.hook_point].read(x[target.tokens[passage]], target.column)


def slow(of: Reading, target: Target, place: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient attributions: features [K, m], all of the place [K], values [K]; one position of one passage a time."""
    known, dense = of.dictionaries[place], torch.from_numpy(of.code.to_scipy().toarray()).double()
    features, everything, values = torch.zeros(3, of.code.m), torch.zeros(3), torch.zeros(3)
    features, everything, values = features.double(), everything.double(), values.double()
    for number, passage in enumerate(of.passages):
        if not len(target.tokens[number]):
            continue
        words = of.model.get_input_embeddings()(passage.ids[None]).requires_grad_(True)
        with watching(of.hook_points) as seen:
            of.model(inputs_embeds=words)
        for a in values_at(of, number, target, seen[target.hook_point][0]):
            (g,) = torch.autograd.grad(a, [seen[place]], retain_graph=True)
            values[passage.fold] += a.detach()
            everything[passage.fold] += (g * seen[place]).sum().detach()
            for row, token in zip(passage.rows, passage.tokens, strict=True):
                features[passage.fold] += dense[row] * (known.decoder @ g[0, token])
    return features, everything, values


@pytest.mark.parametrize("place", ["resid_post.0", "mlp_out.1"])
@pytest.mark.parametrize("batch_tokens", [14, 200])
def test_gradient_times_activation(place: str, batch_tokens: int) -> None:
    of = reading()
    targets = [target(of, "resid_post.2", 3), target(of, "resid_post.2", 5)]
    found = attribute(of, targets, Options(method="gradient", batch_tokens=batch_tokens, folds=3))
    for asked, got in zip(targets, found, strict=True):
        features, everything, values = slow(of, asked, place)
        assert torch.allclose(got.hook_points[place].features, features, rtol=1e-5, atol=1e-7)
        assert torch.allclose(total(got.hook_points[place]), everything, rtol=1e-5, atol=1e-7)
        assert torch.allclose(got.value, values, rtol=1e-6)
        assert got.count.sum() == sum(map(len, asked.tokens))


def total(sums: HookPointSums) -> torch.Tensor:
    """[K] the whole contribution of a hook point."""
    return sums.features.sum(1) + sums.bias + sums.error + sums.uncoded


def left(got: Attribution) -> torch.Tensor:
    """[K] the target less what its read-out gives at nothing."""
    return got.value - got.constant * got.count


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "olmo2"])
def test_relp_explains_all_of_the_target_without_biases(name: str) -> None:
    of = reading(name, ["resid_post.0", "resid_post.1", "resid_post.2"])
    (got,) = attribute(of, [target(of, "resid_post.2", 4)], OPTIONS)
    for sums in got.hook_points.values():
        assert torch.allclose(total(sums), left(got), rtol=1e-5, atol=1e-6)
    assert torch.allclose(sum(got.tokens.values(), torch.zeros(3).double()), left(got), rtol=1e-5, atol=1e-6)


def test_a_place_that_is_multiplied_on_its_way_into_the_stream() -> None:
    of = reading("granite", ["mlp_out.1", "resid_post.1"])
    assert of.hook_points[0].factor != 1
    asked = target(of, "resid_post.1", 2)
    (got,) = attribute(of, [asked], OPTIONS)
    with watching(of.hook_points) as seen:
        direct = 0.0
        for number, passage in enumerate(of.passages):
            of.model(input_ids=passage.ids[None])
            written = seen["mlp_out.1"][0] * of.hook_points[0].factor
            weight = of.dictionaries["resid_post.1"].readout[:, 2] / of.dictionaries["resid_post.1"].scale
            direct += float((written[asked.tokens[number]] @ weight).sum())
    assert total(got.hook_points["mlp_out.1"]).sum() == pytest.approx(direct, rel=1e-6)


def test_nothing_is_hidden_where_there_is_no_code() -> None:
    """Tokens without a code are booked whole, and a decoder that explains nothing leaves all to the error."""
    of = reading()
    for known in of.dictionaries.values():
        known.decoder.zero_()
        known.bias.zero_()
        known.mean.zero_()
    (got,) = attribute(of, [target(of, "resid_post.2", 4)], OPTIONS)
    sums = got.hook_points["resid_post.0"]
    assert not sums.features.any() and not sums.bias.any()
    assert (sums.uncoded[:2] != 0).all()
    assert torch.allclose(sums.error + sums.uncoded, left(got), rtol=1e-5, atol=1e-6)


def test_integrated_gradients_end_at_the_mean() -> None:
    of = reading()
    asked = target(of, "resid_post.2", 4)
    (got,) = attribute(of, [asked], Options(method="integrated", steps=64, batch_tokens=32, folds=3))
    start = of.dictionaries["resid_post.0"].mean
    at_mean = torch.zeros(3).double()
    for number, passage in enumerate(of.passages):
        handle = of.hook_points[0].module.register_forward_hook(lambda _m, _i, out: start.expand_as(out))
        with torch.no_grad(), watching(of.hook_points) as seen:
            of.model(input_ids=passage.ids[None])
        handle.remove()
        at_mean[passage.fold] += values_at(of, number, asked, seen["resid_post.2"][0]).sum()
    sums = got.hook_points["resid_post.0"]
    assert torch.allclose(total(sums), got.value - at_mean, rtol=0.02, atol=0.02)
    given = sum(got.tokens.values(), torch.zeros(3).double())
    assert torch.isfinite(given).all() and given[:2].abs().min() > 0
    of.skippable = {"resid_post.0": [of.model.layers[0]]}
    options = Options(method="integrated", steps=64, batch_tokens=32, folds=3, tokens=False)
    (again,) = attribute(of, [asked], options)
    assert torch.allclose(again.hook_points["resid_post.0"].features, sums.features)
    assert not again.tokens


def test_progress_is_told_and_may_end_it() -> None:
    of, told = reading(), []
    attribute(of, [target(of, PLACES[-1], 4)], OPTIONS, told.append)
    assert told[-1] == 1.0 and told == sorted(told) and len(told) > 1

    def stop(_share: float) -> None:
        raise RunError("stop", "now")

    with pytest.raises(RunError):
        attribute(of, [target(of, PLACES[-1], 4)], OPTIONS, stop)
    assert not of.hook_points[0].module._forward_hooks
    assert of.model.config._attn_implementation != "featurewatch_constant_pattern"
