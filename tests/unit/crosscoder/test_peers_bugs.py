"""Bugs that other crosscoder trainers had, one test each."""

from pathlib import Path

import pytest
import torch

from benchmarks.planted_data import HOOK_POINT, make_lineage, write_checkpoint
from featurewatch.workers.activations.store import open_activations
from featurewatch.workers.crosscoder import preactivations, sparsity
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import Step, fit, start
from featurewatch.workers.crosscoder.model import Moments, Normaliser
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import PreActivations
from featurewatch.workers.pipelines.shared.sources import Activations
from tests.unit.crosscoder.reference import Recording, away_from_start, compare

LAYOUT = Layout((5, 9), (0, 1))


def test_folding_normalisation_into_the_weights_where_sources_differ_in_norm() -> None:
    """A scale and a mean for each source, in the encoder and back in the decoder: the raw activations' own crosscoder
    gives the code and the reconstruction of the normalised ones, for sources whose norms differ a thousandfold."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(300, 14, generator=generator) * torch.tensor([1.0] * 5 + [1000.0] * 9) + 7.0
    moments = Moments([5, 9])
    moments.add(raw)
    normaliser = moments.normaliser()
    model = away_from_start(FitConfig(n_features=30, k=4, sparsity="topk"), LAYOUT).model
    code = model.encode(normaliser(raw))
    hidden = torch.from_numpy(code.to_scipy().toarray()).double()
    scale, mean = normaliser.scale.double(), normaliser.mean.double()
    encoder = model.encoder.double() * scale
    bias = model.encoder_bias.double() - encoder @ mean
    folded = (raw.double() @ encoder.T + bias) * (hidden > 0)
    torch.testing.assert_close(folded, hidden, atol=1e-4, rtol=1e-4)
    written = hidden @ (model.decoder.double() / scale) + model.decoder_bias.double() / scale + mean
    back = model.reconstruct(code).double() / scale + mean
    torch.testing.assert_close(written, back, atol=1e-4, rtol=1e-6)
    off = (normaliser(back.float()) - model.reconstruct(code)).abs().max()
    assert float(off) < 1e-3


def _dead() -> tuple[Recording, Step]:
    """The steps of a fit whose first 6 latents are dead, with AuxK and without."""
    config = FitConfig(n_features=30, k=3, steps=1000, batch_size=100)
    steps = []
    for weight in (config.aux_weight, 0.0):
        chosen = FitConfig(n_features=30, k=3, steps=1000, batch_size=100, aux_weight=weight)
        state, step = away_from_start(chosen, LAYOUT), Recording(chosen, LAYOUT, 100, Parallel())
        state.model.decoder[:6] *= 1e-3
        state.silent[:6] = 10**9
        step(state, torch.randn(100, 14, generator=torch.Generator().manual_seed(0)))
        assert int((state.silent >= step.dead_after).sum()) == 6
        steps.append(step)
    return steps[0], steps[1]


def test_auxk_that_never_reaches_the_gradient() -> None:
    """It is in the gradient that Adam takes, and it is the formula's."""
    with_it, without = _dead()
    assert float((with_it.gradients[2][:6] - without.gradients[2][:6]).abs().max()) > 0
    for got, other in zip(with_it.gradients[:3], without.gradients[:3], strict=True):
        torch.testing.assert_close(got[6:], other[6:])
    compare(FitConfig(n_features=40, k=4, steps=1000, batch_size=200), LAYOUT, dead_share=0.3)


def test_a_fused_encoder_that_drops_auxk_s_gradient() -> None:
    """A dead latent's encoder row and bias are pulled as well, or it could never fire again."""
    with_it, without = _dead()
    for place in (0, 1):
        pulled = [step.gradients[place][:6].reshape(6, -1).abs().amax(1) for step in (with_it, without)]
        assert bool((pulled[0] > 0).all())
        assert bool((pulled[1] == 0).all())


@pytest.mark.parametrize("name", ["batch_topk", "topk"])
def test_batch_topk_that_keeps_negative_latents(name: str) -> None:
    """Where fewer than n k pre-activations are positive, fewer are kept; in training and in inference."""
    x = -torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    x[3, 2] = 0.5
    pre = PreActivations(x, torch.eye(6), torch.zeros(6), preactivations.Scratch())
    weights = torch.ones(6)
    for cut in (0.0, 3.0):
        chosen = (
            sparsity.batch_topk(pre, weights, 40, cut, Parallel())
            if name == "batch_topk"
            else sparsity.topk(pre, weights, 2, Parallel())
        )
        assert chosen.code.values.tolist() == [0.5]
    model = start(FitConfig(n_features=6, k=2, sparsity=name), Layout((6,))).model
    model.encoder, model.decoder = torch.eye(6), torch.eye(6)
    assert model.encode(x).values.tolist() == [0.5]


def test_labels_hard_coded_for_two_models() -> None:
    """Three checkpoints, one of them with two sources: every latent's place and norms go by the layout."""
    layout = Layout((4, 3, 6, 5), (0, 1, 1, 2))
    config = FitConfig(n_features=20, k=3, steps=5, batch_size=50, designated=4, dedicated=(2, 3, 4))
    x = torch.randn(200, 18, generator=torch.Generator().manual_seed(0))
    model = fit(lambda rows: x[rows], 200, layout, config).model
    written = (model.norms_by_source() > 0).tolist()
    assert layout.n_models == 3
    assert written[:11] == [[True] * 4] * 11
    assert written[11:13] == [[True, False, False, False]] * 2
    assert written[13:16] == [[False, True, True, False]] * 3
    assert written[16:] == [[False, False, False, True]] * 4


@pytest.fixture
def activations(tmp_path: Path) -> Activations:
    """One checkpoint's activations on disk, with a mean and a scale far from 0 and 1."""
    lineage = make_lineage(
        0, n_checkpoints=1, n_positions=2000, width=16, n_planted=20, n_suppressed=0, n_removed=0, n_born=0
    )
    write_checkpoint(lineage, 1, tmp_path)
    return Activations(open_activations(tmp_path, hook_points=[HOOK_POINT]), [HOOK_POINT], torch.device("cpu"))


def test_normalising_twice(activations: Activations) -> None:
    """However often and in whatever order it is asked for, held in memory or not: once."""
    rows = torch.arange(0, 2000, 3)
    once = activations.normalised()(activations.raw(rows))
    activations.normalised()
    torch.testing.assert_close(activations(rows), once)
    activations.normalise_by(activations.normalised())
    torch.testing.assert_close(activations(rows), once)
    activations.cached = None
    torch.testing.assert_close(activations(rows), once)
    assert float(activations(torch.arange(2000)).square().sum(1).mean()) == pytest.approx(16, rel=1e-4)


def test_train_and_inference_normalisation_that_differ(activations: Activations) -> None:
    """What is kept of a source (mean and rms) makes the normaliser again that training used."""
    rows = torch.arange(2000)
    trained_on = activations(rows)
    kept = activations.statistics()
    scale = torch.cat([torch.full_like(mean, len(mean) ** 0.5 / rms) for mean, rms in kept])
    again = Activations(activations.opened, activations.hook_points, torch.device("cpu"))
    again.normalise_by(Normaliser(torch.cat([mean for mean, _ in kept]), scale))
    torch.testing.assert_close(again(rows), trained_on)


def test_thresholds_for_dead_that_a_short_run_never_reaches() -> None:
    """`dead_after` counts positions; a fit of fewer has its dead latents too, and revives them."""
    x = torch.randn(2000, 14, generator=torch.Generator().manual_seed(0))
    silent: dict[float, int] = {}
    for weight in (0.0, 1.0):
        config = FitConfig(n_features=30, k=3, steps=60, batch_size=100, aux_weight=weight, learning_rate=0.02,
                           resample_every=0)  # fmt: skip
        assert config.dead_after > config.steps * config.batch_size
        assert Step(config, LAYOUT, 100, Parallel()).dead_after == 1500
        state = start(config, LAYOUT)
        state.model.decoder[:10] *= 0.05
        state = fit(lambda rows: x[rows], 2000, LAYOUT, config, state=state)
        silent[weight] = int((state.silent[:10] >= 6000).sum())
        encoder_moved = not torch.equal(state.model.encoder[:10], start(config, LAYOUT).model.encoder[:10])
        assert encoder_moved == (weight > 0)
    assert silent[0.0] == 10 > silent[1.0]
