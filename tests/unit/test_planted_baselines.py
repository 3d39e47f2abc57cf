"""The literature's methods on a lineage where they should get it right, and the rules by which they are read."""

import numpy as np
import pytest
import torch
from scipy import sparse

from benchmarks.planted_baselines import METHODS, Fitted, Step, _scored, fitted, latent_scaling, norm_bins
from benchmarks.planted_data import make_lineage
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.model import initial_crosscoder

EVENTS = {"n_suppressed": 1, "n_removed": 2, "n_born": 2, "n_amplified": 1, "n_relocated": 2}
CONFIG = FitConfig(n_features=24, k=3, steps=400, batch_size=256, learning_rate=5e-3)


@pytest.fixture(scope="module")
def lineage():
    return make_lineage(
        9, n_checkpoints=2, n_positions=3000, width=32, n_planted=16, lowest_rate=0.05, highest_rate=0.2,
        topic_contrast=0.3, isotropic_noise=0.02, n_noise_directions=1, directed_noise=0.05, **EVENTS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dictionaries(lineage):
    before, now = lineage.activations(1), lineage.activations(2)
    return fitted([before, now], CONFIG), fitted([before], CONFIG), fitted([now], CONFIG)


@pytest.mark.parametrize("name", METHODS)
def test_most_of_what_goes_and_comes_is_found_where_it_is_easy(lineage, dictionaries, name):
    result = _scored(lineage, {2: METHODS[name](*dictionaries)})
    assert result["classes"]["present"]["recall"] > 0.6, result["confusion"]
    recalls = [result["classes"][status]["recall"] for status in ("absent", "emerged")]
    assert min(recalls) >= 0.5, result["confusion"]


@pytest.fixture
def exact():
    """Two checkpoints of orthogonal directions, a crosscoder that holds them as they are, and exact codes.

    Latents: 0 present, 1 suppressed to 0.3, 2 gone, 3 new, 4 relocated, 5 amplified threefold.
    """
    rng = np.random.default_rng(0)
    code = (rng.random((500, 6)) < 0.2) * rng.uniform(1, 2, (500, 6))
    before = np.eye(6, 8) * np.array([1, 1, 1, 0, 1, 1.0])[:, None]
    now = np.eye(6, 8) * np.array([1, 0.3, 0, 1, 0, 3.0])[:, None]
    now[4, 7] = 1.0
    model = initial_crosscoder(FitConfig(n_features=6, k=1), Layout((8, 8), (0, 1)))
    model.decoder.copy_(torch.from_numpy(np.hstack([before, now])))
    x = torch.from_numpy(code @ np.hstack([before, now])).float()
    return Fitted(model, sparse.csr_array(code.astype(np.float32)), x, np.arange(500))


@pytest.mark.parametrize("method", [norm_bins, latent_scaling])
def test_exact_crosscoders_are_read_as_they_are(exact, method):
    expected = ["present", "suppressed", "absent", "emerged", "relocated", "amplified"]
    assert method(exact, exact, exact).status == expected


def test_latent_scaling_sees_what_a_decoder_norm_hides(exact):
    """A crosscoder that wrongly writes nothing at the checkpoint for what is still there: its error says so."""
    exact.model.decoder[0, 8:] = 0
    assert norm_bins(exact, exact, exact).status[0] == "absent"
    assert latent_scaling(exact, exact, exact).status[0] != "absent"


def test_sinks_are_masked(lineage):
    x = lineage.activations(1)
    x[[5, 70]] *= 40
    found = fitted([x], FitConfig(n_features=8, k=1, steps=2, batch_size=64))
    assert not set(found.rows.tolist()) & {5, 70} and len(found.rows) == 2998
    assert found.code.shape == (3000, 8) and found.code[[5, 70]].nnz == 0


def test_what_neither_checkpoint_writes_is_taken_as_said_to_be_absent():
    lineage = make_lineage(
        1,
        n_checkpoints=3,
        n_positions=2000,
        width=8,
        n_planted=6,
        lowest_rate=0.04,
        n_suppressed=0,
        n_removed=2,
        n_born=0,
    )
    gone = next(event.feature for event in lineage.events if event.checkpoint == 2)
    status = ["present"] * 6
    codes = lineage.codes.toarray()
    codes[:, gone] = 0
    result = _scored(lineage, {3: Step(status, sparse.csr_array(codes))})
    assert result["confusion"] == {"absent -> present": 1}  # the other one, which goes at 3
