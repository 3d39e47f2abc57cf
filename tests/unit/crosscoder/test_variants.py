"""Every variant of the crosscoder: loss and gradients against the dense formulas, and what each promises beyond."""

import itertools
from typing import Any

import pytest
import torch

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import Step, fit, start
from featurewatch.workers.crosscoder.fit.gradients import view
from featurewatch.workers.crosscoder.model import Crosscoder, shared_maps
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.sparsity import SPARSITIES as BY_NAME
from featurewatch.workers.crosscoder.sparsity import Penalised
from tests.unit.crosscoder.planted import rotation
from tests.unit.crosscoder.reference import away_from_start, compare

M = 40
LAYOUTS = {
    "one": Layout((12,)),
    "two": Layout((6, 6), (0, 1)),
    "three widths": Layout((3, 12, 7), (0, 0, 1)),
}
SPARSITIES: list[dict[str, Any]] = [{"sparsity": name} for name in BY_NAME]


def config_of(**options: Any) -> FitConfig:
    """A configuration of 40 latents."""
    return FitConfig(**{"n_features": M, "k": 4, "steps": 1000, "batch_size": 200} | options)


def maps_of(widths: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Orthonormal P_s into the space of the widest source: [d, d_s]."""
    d = max(widths)
    return tuple(torch.from_numpy(rotation(d, seed)).float()[:, :w].contiguous() for seed, w in enumerate(widths))


def check(layout: Layout, options: dict[str, Any], **more: Any) -> None:
    config = config_of(**options)
    maps = maps_of(layout.widths) if config.decoder == "shared" else ()
    penalty = 0.02 if isinstance(BY_NAME[config.sparsity], Penalised) else 0.0
    compare(config, layout, maps=maps, penalty=penalty, **more)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda s: s["sparsity"])
@pytest.mark.parametrize("decoder", ["per_source", "shared"])
def test_sparsities_and_decoders(layout: Layout, sparsity: dict[str, Any], decoder: str) -> None:
    check(layout, sparsity | {"decoder": decoder})


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda s: s["sparsity"])
@pytest.mark.parametrize(
    "options",
    [
        {"prefixes": (7, 19)},
        {"prefixes": (1, 39)},
        {"designated": 11, "designated_discount": 0.3},
        {"dedicated": (5, 9)},
        {"source_dropout": 0.4},
    ],
    ids=str,
)
def test_options(sparsity: dict[str, Any], options: dict[str, Any]) -> None:
    check(LAYOUTS["three widths"], sparsity | options)


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda s: s["sparsity"])
@pytest.mark.parametrize("layout", ["two", "three widths"])
def test_invalid_sources_weigh_nothing_and_the_others_stand_in(layout: str, sparsity: dict[str, Any]) -> None:
    check(LAYOUTS[layout], sparsity, invalid=True)


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda s: s["sparsity"])
@pytest.mark.parametrize("invalid", [False, True])
def test_all_options_at_once(sparsity: dict[str, Any], invalid: bool) -> None:
    together = {"prefixes": (10, 25), "designated": 6, "dedicated": (4, 5), "source_dropout": 0.3}
    check(LAYOUTS["three widths"], sparsity | together, invalid=invalid)
    shared = {"prefixes": (10, 25), "decoder": "shared", "source_dropout": 0.3}
    check(LAYOUTS["three widths"], sparsity | shared, invalid=invalid)


@pytest.mark.parametrize("sparsity", SPARSITIES[:2], ids=lambda s: s["sparsity"])
@pytest.mark.parametrize(
    "options",
    [{}, {"decoder": "shared"}, {"prefixes": (9, 30)}, {"designated": 6, "dedicated": (4, 5), "source_dropout": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("invalid", [False, True])
def test_auxk_reaches_the_gradients(sparsity: dict[str, Any], options: dict[str, Any], invalid: bool) -> None:
    check(LAYOUTS["three widths"], sparsity | options, invalid=invalid, dead_share=0.4)


@pytest.mark.parametrize(("k", "b"), [(1, 7), (9, 300), (M, 64)])
def test_sizes(k: int, b: int) -> None:
    """Batches smaller than AuxK's sample and larger, up to every latent that is positive."""
    check(LAYOUTS["two"], {"k": k, "sparsity": "topk"}, b=b)
    if k < M:
        check(LAYOUTS["two"], {"k": k}, b=b, dead_share=0.2)


def test_one_source_is_a_plain_sparse_autoencoder() -> None:
    """BatchTopK of Bussmann et al. written out for one source, which knows nothing of sources."""
    compared = compare(config_of(), LAYOUTS["one"])
    model, x = compared.state.model, torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    code = model.encode(x)
    hidden = (x @ model.encoder.T + model.encoder_bias).relu()
    hidden = hidden * (hidden * model.decoder.norm(dim=1) > model.threshold)
    torch.testing.assert_close(torch.from_numpy(code.to_scipy().toarray()), hidden)
    torch.testing.assert_close(model.reconstruct(code), hidden @ model.decoder + model.decoder_bias)


def _steps(options: dict[str, Any], layout: Layout, count: int = 12) -> Crosscoder:
    """The model after some steps on noise, with a resampling among them."""
    config = config_of(steps=count, learning_rate=0.05, resample_every=0.25, resample_below=0.5, **options)
    x = torch.randn(1000, layout.width, generator=torch.Generator().manual_seed(1))
    return fit(lambda rows: x[rows], len(x), layout, config).model


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda s: s["sparsity"])
def test_designated_latents_have_one_norm_in_all_sources(sparsity: dict[str, Any]) -> None:
    """Over sqrt(d_s), which is what a normalised source of width d_s measures."""
    layout = LAYOUTS["three widths"]
    model = _steps(sparsity | {"designated": 9}, layout)
    norms = model.norms_by_source() / torch.tensor(layout.widths).sqrt()
    torch.testing.assert_close(norms[:9], norms[:9, :1].expand(9, 3))
    assert float((norms[9:] / norms[9:, :1] - 1).abs().max()) > 0.1


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda s: s["sparsity"])
def test_dedicated_latents_write_to_their_own_checkpoint_alone(sparsity: dict[str, Any]) -> None:
    model = _steps(sparsity | {"dedicated": (5, 9)}, LAYOUTS["three widths"])
    first, second = model.decoder[26:31], model.decoder[31:]
    assert bool((first[:, 15:] == 0).all())
    assert bool((second[:, :15] == 0).all())
    assert bool((first[:, :15] != 0).all() and (second[:, 15:] != 0).all())
    assert bool((model.decoder[:26] != 0).all())
    # They are written by one checkpoint, but may be read from both.
    assert float(model.encoder[26:31, 15:].abs().max()) > 0
    assert float(model.encoder[31:, :15].abs().max()) > 0


def test_a_designated_latent_pays_its_discount() -> None:
    """Its threshold is lower by the root of what it pays, in inference as in training."""
    config = config_of(n_features=2, k=1, designated=1, designated_discount=0.01)
    state = start(config, Layout((2,)))
    state.model.encoder, state.model.decoder = torch.eye(2), torch.eye(2)
    state.model.prices  # noqa: B018 - computed once, from the configuration
    state.model.threshold.fill_(1.0)
    code = state.model.encode(torch.tensor([[0.2, 0.0], [0.0, 0.2], [0.0, 1.2], [0.05, 0.0]]))
    assert code.indptr.tolist() == [0, 1, 1, 2, 2]
    assert code.latents.tolist() == [0, 1]


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_source_dropout_hides_so_many_and_never_all(dropout: float) -> None:
    layout = LAYOUTS["three widths"]
    model = away_from_start(config_of(source_dropout=dropout), layout).model
    step = Step(model.config, layout, 4000, Parallel())
    x = torch.ones(4000, layout.width)
    x[::5, :3] = torch.nan
    draw = step.draw(3)
    assert draw is not None
    batch = view(model, x, draw)
    inputs = torch.stack([part[:, 0] for part in batch.inputs.split(layout.widths, 1)], 1)
    seen = inputs > 0
    assert bool(seen.any(1).all())
    assert not bool(seen[::5, 0].any())
    whole = torch.ones(4000, dtype=torch.bool)
    whole[::5] = False
    # A position whose sources were all drawn keeps one of its three.
    assert float(seen[whole].float().mean()) == pytest.approx(1 - dropout + dropout**3 / 3, abs=0.02)
    torch.testing.assert_close(inputs, seen * (3 / seen.sum(1, keepdim=True)))
    # The target stays all that is valid.
    assert batch.valid is not None
    assert torch.equal(batch.x, x.nan_to_num(0.0))
    assert torch.equal(batch.valid.bool(), ~x.isnan())
    draws = [step.draw(3), step.draw(4)]
    assert torch.equal(draws[0], draw)
    assert not torch.equal(draws[1], draw)


def test_after_source_dropout_each_source_reads_the_features_alone() -> None:
    """The encoder of one source stands in for all of them; without dropout it gives half a pre-activation's truth."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(4000, 24, generator=generator) < 0.08) * (1 + torch.rand(4000, 24, generator=generator))
    x = truth @ torch.randn(24, 32, generator=generator) + 0.05 * torch.randn(4000, 32, generator=generator)
    x = (x - x.mean(0)) / x.std()
    layout, errors = Layout((16, 16)), {}
    for dropout in (0.0, 0.4):
        config = config_of(n_features=32, k=2, steps=400, learning_rate=5e-3, source_dropout=dropout)
        model = fit(lambda rows: x[rows], len(x), layout, config).model
        code = model.encode(x[:, :16], source=0)
        errors[dropout] = float((model.reconstruct(code) - x).square().sum() / x.square().sum())
    assert errors[0.4] < 0.5 * errors[0.0]


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(SPARSITIES, 2)), ids=lambda s: s["sparsity"])
def test_sparsities_differ(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Each selects its own: on one state no two of them have one loss."""
    losses = [compare(config_of(**o), LAYOUTS["two"], penalty=0.02).state.losses[-1] for o in (a, b)]
    assert losses[0] != losses[1]


def test_shared_maps_are_procrustes_where_bases_differ_and_the_identity_where_they_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2000, 8, generator=generator)
    turn = torch.from_numpy(rotation(8, 1)).float()
    narrow = turn[:, :5]
    sources = [base @ narrow, base, base @ turn, base + 0.1 * torch.randn(2000, 8, generator=generator)]
    maps = shared_maps([part.T @ base for part in sources], (5, 8, 8, 8))
    torch.testing.assert_close(maps[0], narrow, atol=0.05, rtol=0)
    torch.testing.assert_close(maps[2], turn, atol=1e-4, rtol=0)
    assert torch.equal(maps[1], torch.eye(8))
    assert torch.equal(maps[3], torch.eye(8))
    for p in maps:
        torch.testing.assert_close(p.T @ p, torch.eye(p.shape[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("widths", [(6, 6), (3, 12, 7)], ids=str)
def test_spread_and_collect_are_adjoint(widths: tuple[int, ...]) -> None:
    """<spread(a), b> = <a, collect(b)>, for a decoder of each kind."""
    generator = torch.Generator().manual_seed(0)
    for options in ({}, {"decoder": "shared"}):
        config = config_of(**options)
        maps = maps_of(widths) if options else ()
        model = start(config, Layout(widths), maps=maps).model
        a = torch.randn(3, model.decoder.shape[1], generator=generator)
        b = torch.randn(3, sum(widths), generator=generator)
        torch.testing.assert_close((model.spread(a) * b).sum(), (a * model.collect(b)).sum())
        torch.testing.assert_close(model.norms(), model.rows().norm(dim=1))
        torch.testing.assert_close(model.norms_by_source().square().sum(1), model.norms().square())
