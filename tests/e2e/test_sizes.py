"""A family of two depths and widths, through the live service: which hook points are held against each other, what is
left over, and where each feature is read best."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from typer.testing import CliRunner

from benchmarks.planted_score import match
from featurewatch.service.cli import app
from featurewatch.service.client import ApiError
from tests.e2e.parts import ONE_DATABASE, Service, unfinished
from tests.unit.activations.tiny import write_activations

pytestmark = ONE_DATABASE

POSITIONS, FEATURES, LATE, LOST = 6000, 36, 12, 20
OPTIONS = {"n_features": 56, "k": 3, "steps": 1200, "batch_size": 256, "learning_rate": 0.003}


class Depths:
    """Planted features, of which the first LATE are not written before the last layer, and LOST not at all in v2."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        rates = rng.uniform(0.03, 0.08, FEATURES)
        self.codes = (rng.random((POSITIONS, FEATURES)) < rates) * rng.uniform(1, 2, (POSITIONS, FEATURES))
        self.rng = rng

    def source(self, width: int, written: np.ndarray) -> torch.Tensor:
        """[n, width] in a basis of its own; written: [FEATURES] strength of each."""
        directions = np.linalg.qr(self.rng.standard_normal((width, FEATURES)))[0].T
        noise = 0.05 * self.rng.standard_normal((POSITIONS, width))
        return torch.from_numpy(((self.codes * written) @ directions + noise).astype(np.float32))

    def write(self, folder: Path, hooks: dict[str, tuple[int, np.ndarray]]) -> str:
        arrays = {hook: self.source(width, written) for hook, (width, written) in hooks.items()}
        return f"activations+file://{write_activations(folder, arrays, shard=POSITIONS)}"


@pytest.fixture(scope="module")
def depths(service: Service) -> dict[str, str]:
    """v1 was read at two layers; v2, wider and deeper, at three others, of which the second is like neither; v3 too.

    Answers the ids of the planted features.
    """
    planted, folder, client = Depths(), service.folder / "depths", service.client
    early, late = np.ones(FEATURES), np.ones(FEATURES)
    early[:LATE] = 0
    middle = np.where(np.arange(FEATURES) % 3 == 0, 1.0, 0.0)
    now_early, now_late = early.copy(), late.copy()
    now_early[LOST] = now_late[LOST] = middle[LOST] = 0
    deeper = {"resid_post.6": (64, now_late), "resid_post.4": (64, middle), "resid_post.2": (64, now_early)}
    client.create_family("depths", ["resid_post.1", "resid_post.3"], crosscoder=OPTIONS)
    service.judge(
        "depths", "v1", planted.write(folder / "v1", {"resid_post.1": (48, early), "resid_post.3": (48, late)})
    )
    uri = planted.write(folder / "v2", deeper)
    with pytest.raises(ApiError, match="of the same kind as the family's"):
        client.register("depths", name="v2", uri=uri, hook_points=["mlp_out.1", "mlp_out.2", "mlp_out.3"])
    service.judge("depths", "v2", uri, hook_points=list(deeper))
    service.judge("depths", "v3", planted.write(folder / "v3", deeper), hook_points=list(deeper))
    service.judge("depths", "v4", planted.write(folder / "v4", {"resid_post.6": (64, now_late)}),
                  hook_points=["resid_post.6"])  # fmt: skip
    path = client.download_codes("depths", folder / "codes.npz", checkpoint="v1")
    numbers = [int(name[1:]) for name in client.code_ids("depths", checkpoint="v1")]
    latents = match(sparse.csr_array(planted.codes), sparse.csr_array(sparse.load_npz(path)), numbers).latent
    assert (latents >= 0).all()
    return {str(feature): f"F{latent}" for feature, latent in enumerate(latents)}


def _sources(service: Service, feature: str) -> dict[str, dict[str, Any]]:
    return {place["checkpoint"]: place for place in service.client.sources("depths", feature)}


def test_hook_points_that_are_alike_are_held_against_each_other(service: Service, depths: dict[str, str]) -> None:
    found = _sources(service, depths["30"])
    pairs = {name: {s["hook_point"]: s["paired_with"] for s in place["sources"]} for name, place in found.items()}
    assert pairs == {
        "v1": {"resid_post.1": None, "resid_post.3": None},
        "v2": {"resid_post.2": "resid_post.1", "resid_post.6": "resid_post.3", "resid_post.4": None},
        "v3": {name: name for name in ("resid_post.2", "resid_post.4", "resid_post.6")},
        "v4": {"resid_post.6": "resid_post.6"},
    }
    assert {s["d_model"] for s in found["v2"]["sources"]} == {64}
    for source in (source for place in found.values() for source in place["sources"]):
        if source["projection_ratio"] is None:
            assert source["projection_ratio_ci"] is None, "it is held against nothing"
        else:
            low, high = source["projection_ratio_ci"]
            assert low < source["projection_ratio"] < high


def test_verdicts_go_by_the_pairs(service: Service, depths: dict[str, str]) -> None:
    for checkpoint in ("v2", "v3", "v4"):
        rows = {row["id"]: row["status"] for row in service.client.features("depths", checkpoint=checkpoint)}
        planted = {feature: rows[name] for feature, name in depths.items()}
        assert planted.pop(str(LOST)) == "absent", checkpoint
        assert set(planted.values()) == {"present"}, checkpoint
        assert "emerged" not in rows.values()


def test_where_a_feature_is_read_best(service: Service, depths: dict[str, str]) -> None:
    for feature in range(LATE):  # in v1 at the last layer alone; in v2 at the last one, and a third of them between
        found = _sources(service, depths[str(feature)])
        assert found["v1"]["best"] == "resid_post.3"
        v2 = {s["hook_point"]: s for s in found["v2"]["sources"]}
        between = feature % 3 == 0
        assert found["v2"]["best"] == "resid_post.6" or between
        assert v2["resid_post.6"]["readability"] > 0.9
        assert (v2["resid_post.4"]["readability"] > 0.8) == between
        assert v2["resid_post.2"]["readability"] < 0.8
        assert (v2["resid_post.4"]["strength"] > 0.3 * v2["resid_post.6"]["strength"]) == between
        assert v2["resid_post.4"]["projection_ratio"] is None
        assert abs(v2["resid_post.6"]["projection_ratio"] - 1) < 0.15


def test_the_command_names_the_best(service: Service, depths: dict[str, str]) -> None:
    arguments = ["feature", "depths", depths["1"], "--sources"]
    shown = CliRunner().invoke(app, arguments, env={"FEATUREWATCH_URL": service.client.url})
    assert shown.exit_code == 0, shown.output
    assert "best at resid_post.3 in v1, at resid_post.6 in v2" in " ".join(shown.output.split())
    assert unfinished(service.folder / "data") == []


def test_parents_of_other_kinds(service: Service) -> None:
    """The family's kind is not enough: the parent was read at another, by its place."""
    planted, folder, client = Depths(), service.folder / "kinds", service.client
    everything = np.ones(FEATURES)
    client.create_family("kinds", ["resid_post.1"], crosscoder=OPTIONS | {"steps": 60})
    other = planted.write(folder / "v1", {"mlp_out.1": (48, everything)})
    service.judge("kinds", "v1", other, hook_points=["mlp_out.1"])
    two = {"resid_post.2": (64, everything), "resid_post.3": (64, everything)}
    run = service.register("kinds", "v2", planted.write(folder / "v2", two), hook_points=list(two))
    assert (run["error"] or {})["code"] == "other-hook-points"
    assert "mlp_out.1" in (run["error"] or {})["detail"]
