"""A first fit over two checkpoints at once, of two sizes with other hook points, through the live service."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import sparse

from benchmarks.planted_data import Lineage, make_lineage
from benchmarks.planted_score import match
from featurewatch.service.client import ApiError
from tests.e2e.parts import HOOK_POINT, ONE_DATABASE, Service, unfinished

pytestmark = ONE_DATABASE

OPTIONS = {"n_features": 60, "k": 3, "steps": 1400, "batch_size": 256, "learning_rate": 0.003}
LARGER, WIDTH = "resid_post.2", 64


def _write(lineage: Lineage, checkpoint: int, folder: Path) -> str:
    """A checkpoint as precomputed activations; from the second on as a larger model, in a basis of its own."""
    x, hook = lineage.activations(checkpoint), HOOK_POINT
    if checkpoint > 1:
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, x.shape[1])))[0]
        x, hook = (x @ basis.T.astype(np.float32)), LARGER
    folder.mkdir(parents=True)
    save_file({"activations": np.ascontiguousarray(x)}, folder / "all.safetensors")
    save_file({"document": lineage.document}, folder / "documents.safetensors")
    manifest = {
        "format": "featurewatch-activations/1", "model": f"v{checkpoint}", "positions": len(x),
        "hook_points": {hook: {"d_model": x.shape[1], "shards": ["all.safetensors"]}},
        "documents": "documents.safetensors",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return f"activations+file://{folder}"


@pytest.fixture(scope="module")
def lineage() -> Lineage:
    """Three checkpoints; in v2 and in v3 each two features are suppressed, one is removed and one is new."""
    return make_lineage(
        3, n_checkpoints=3, n_positions=6000, width=48, n_planted=40,
        n_suppressed=4, n_removed=2, n_born=2, lowest_rate=0.03,
    )  # fmt: skip


def test_two_sizes_are_fitted_together(service: Service, lineage: Lineage) -> None:
    client, folder = service.client, service.folder / "together"
    uris = [_write(lineage, checkpoint, folder / f"v{checkpoint}") for checkpoint in (1, 2, 3)]
    client.create_family("sizes", [HOOK_POINT], crosscoder=OPTIONS)

    waits = service.judge("sizes", "v1", uris[0], fit="later")
    assert (waits["result"] or {})["fit"] == "later"
    assert (client.checkpoint("sizes", "v1")["state"], client.family("sizes")["n_features"]) == ("harvested", 0)
    with pytest.raises(ApiError, match="has not been judged"):
        client.report("sizes", "v1")
    with pytest.raises(ApiError, match="pair them in order"):
        client.register("sizes", name="v2", uri=uris[1], hook_points=["mlp_out.1", "mlp_out.2"])

    both = service.judge("sizes", "v2", uris[1], hook_points=[LARGER])
    assert (both["result"] or {})["fit"] == "fit over v1, v2"
    extended = service.judge("sizes", "v3", uris[2], hook_points=[LARGER])
    assert (extended["result"] or {})["fit"] == "extend"
    rows = {c["name"]: (c["state"], c["generation"], c["parent"]) for c in client.checkpoints("sizes")}
    assert rows == {"v1": ("judged", 1, None), "v2": ("judged", 1, "v1"), "v3": ("judged", 1, "v2")}

    path = client.download_codes("sizes", folder / "codes.npz")
    numbers = [int(name[1:]) for name in client.code_ids("sizes")]
    latent = match(lineage.codes, sparse.csr_array(sparse.load_npz(path)), numbers).latent
    kinds = {"suppressed": "suppressed", "removed": "absent", "born": "emerged"}
    lost: set[str] = set()
    for checkpoint in (2, 3):
        expected = {f"F{latent[e.feature]}": kinds[e.kind] for e in lineage.events if e.checkpoint == checkpoint}
        assert Counter(expected.values()) == {"suppressed": 2, "absent": 1, "emerged": 1}
        said: dict[str, Any] = {
            row["id"]: row["status"] for row in client.features("sizes", checkpoint=f"v{checkpoint}")
        }
        assert {said.pop(name) for name in lost} <= {"absent"}
        assert {n: s for n, s in said.items() if s not in ("present", "indeterminate")} == expected
        lost = {name for name, status in expected.items() if status == "absent"}
    events = [run["id"] for run in client.runs(family="sizes") if run["state"] == "succeeded"]
    assert len(events) == 3

    late = service.register("sizes", "v4", uris[2], fit="later", hook_points=[LARGER])
    assert (late["state"], (late["error"] or {})["code"]) == ("failed", "dictionary-is-there")
    assert unfinished(service.folder / "data") == []


def test_what_waits_cannot_be_extended(service: Service, lineage: Lineage) -> None:
    service.client.create_family("waiting", [HOOK_POINT], crosscoder=OPTIONS)
    uri = _write(lineage, 1, service.folder / "waiting" / "v1")
    service.judge("waiting", "v1", uri, fit="later")
    run = service.register("waiting", "v2", uri, fit="extend")
    assert (run["state"], (run["error"] or {})["code"]) == ("failed", "nothing-to-extend")
