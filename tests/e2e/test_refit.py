"""A re-fit through the live service: ids go on, verdicts are right over the change of generations, history stays."""

from collections import Counter
from functools import cache
from typing import Any

import pytest
from scipy import sparse

from benchmarks.planted_data import Lineage, make_lineage
from benchmarks.planted_score import Matching, match
from tests.e2e.parts import HOOK_POINT, ONE_DATABASE, Service, write_lineage

pytestmark = ONE_DATABASE

OPTIONS = {"n_features": 60, "k": 3, "steps": 1400, "batch_size": 256, "learning_rate": 0.003}
POLICY = {"refit_every": 1, "warm_start": False}
"""What ends, splits and is new shows where a fit starts from nothing."""
KINDS = {"suppressed": "suppressed", "removed": "absent", "born": "emerged"}


@cache
def lineage() -> Lineage:
    """Four checkpoints; in each from v2 on, two features are suppressed, one is removed and one is new."""
    return make_lineage(
        2, n_checkpoints=4, n_positions=6000, width=48, n_planted=40,
        n_suppressed=6, n_removed=3, n_born=3, lowest_rate=0.03,
    )  # fmt: skip


class Onboarded:
    """v1 fitted, v2 extended, v3 re-fitted as the policy wants it, v4 extended.

    And which feature each planted one is, after each of them.
    """

    def __init__(self, service: Service) -> None:
        self.client = service.client
        self.client.create_family("refitted", [HOOK_POINT], crosscoder=OPTIONS, policy=POLICY)
        self.results: dict[str, dict[str, Any]] = {}
        self.matchings: dict[str, Matching] = {}
        uris = write_lineage(lineage(), service.folder / "refitted")
        for name, uri in zip(("v1", "v2", "v3", "v4"), uris, strict=True):
            self.results[name] = service.judge("refitted", name, uri)["result"] or {}
            path = self.client.download_codes("refitted", service.folder / "codes.npz")
            numbers = [int(feature[1:]) for feature in self.client.code_ids("refitted")]
            self.matchings[name] = match(lineage().codes, sparse.csr_array(sparse.load_npz(path)), numbers)

    def expected(self, checkpoint: int) -> dict[str, str]:
        """Feature -> status of what was planted in a checkpoint."""
        latent = self.matchings[f"v{checkpoint}"].latent
        return {f"F{latent[e.feature]}": KINDS[e.kind] for e in lineage().events if e.checkpoint == checkpoint}

    def statuses(self, **query: Any) -> dict[str, str]:
        return {row["id"]: row["status"] for row in self.client.features("refitted", **query)}


@pytest.fixture(scope="module")
def onboarded(service: Service) -> Onboarded:
    return Onboarded(service)


def test_a_refit_that_starts_from_the_last_generation_hardly_ends_a_feature(service: Service) -> None:
    """Latents without a planted feature go on as well, where a start from nothing ends most of them."""
    client = service.client
    client.create_family("warm", [HOOK_POINT], crosscoder=OPTIONS, policy={"refit_every": 1})
    found: dict[str, Matching] = {}
    for name, uri in zip(("v1", "v2", "v3"), write_lineage(lineage(), service.folder / "warm"), strict=False):
        result = service.judge("warm", name, uri)["result"] or {}
        path = client.download_codes("warm", service.folder / "warm.npz")
        code = sparse.csr_array(sparse.load_npz(path))
        found[name] = match(lineage().codes, code, [int(feature[1:]) for feature in client.code_ids("warm")])
    assert result["fit"] == "refit: 1 extension"
    had = found["v2"].latent >= 0
    assert (found["v2"].latent[had] == found["v3"].latent[had]).mean() >= 0.95
    fires = {row["id"] for row in client.features("warm", checkpoint="v2") if row["firings"] >= 30}
    carried = {link["old"] for link in client.lineage("warm") if link["kind"] == "carried"}
    assert len(fires & carried) >= 0.9 * len(fires)


def test_planted_features_keep_their_ids(onboarded: Onboarded) -> None:
    before, after = onboarded.matchings["v2"].latent, onboarded.matchings["v3"].latent
    had = before >= 0
    assert had.sum() >= 38, "the fit of v1 missed planted features"
    assert (before[had] == after[had]).mean() >= 0.95
    assert (onboarded.matchings["v4"].latent == after).mean() >= 0.95
    assert [onboarded.results[name]["fit"] for name in ("v1", "v2", "v3", "v4")] == [
        "fit", "extend", "refit: 1 extension", "extend",
    ]  # fmt: skip
    assert onboarded.client.family("refitted")["generation"] == 2
    assert [c["generation"] for c in onboarded.client.checkpoints("refitted")] == [1, 1, 2, 2]


@pytest.mark.parametrize("checkpoint", [3, 4])
def test_events_are_judged_over_the_change(onboarded: Onboarded, checkpoint: int) -> None:
    """What happened in the very checkpoint that was re-fitted, and in the next one, which extends the new code."""
    expected = onboarded.expected(checkpoint)
    assert Counter(expected.values()) == {"suppressed": 2, "absent": 1, "emerged": 1}
    said = onboarded.statuses(checkpoint=f"v{checkpoint}")
    lost_before = {name for c in range(2, checkpoint) for name, s in onboarded.expected(c).items() if s == "absent"}
    changed = {name: status for name, status in said.items() if status not in ("present", "indeterminate")}
    still = {name: changed.pop(name) for name in lost_before}
    assert set(still.values()) == {"absent"}, "what was lost in an earlier generation is still lost"
    assert changed == expected


def test_history_goes_on(onboarded: Onboarded) -> None:
    suppressed = next(name for name, status in onboarded.expected(2).items() if status == "suppressed")
    points = onboarded.client.trajectory("refitted", suppressed)
    assert [(point["checkpoint"], point["status"]) for point in points] == [
        ("v1", "present"), ("v2", "suppressed"), ("v3", "present"), ("v4", "present"),
    ]  # fmt: skip
    retired = [row for row in onboarded.client.features("refitted", checkpoint="v2") if row["retired_in"] == 2]
    assert retired, "latents without a planted feature hardly go on"
    lineage_of = {row["id"]: onboarded.client.feature("refitted", row["id"])["lineage"] for row in retired}
    assert {link["kind"] for links in lineage_of.values() for link in links} <= {"retired", "split", "merged"}
    assert all(link["old"] == name for name, links in lineage_of.items() for link in links)
    kept = onboarded.client.feature("refitted", suppressed)["lineage"]
    assert [(link["kind"], link["new"], link["checkpoint"]) for link in kept] == [("carried", suppressed, "v3")]
    assert kept[0]["score"] > 0.8
    refit = onboarded.client.report("refitted", "v3")["refit"]
    assert refit["why"] == "refit: 1 extension"
    assert refit["retired"] + refit["split"] + refit["merged"] == len(retired)
    assert refit["carried"] + len(retired) == len(onboarded.statuses(checkpoint="v2"))
    points = onboarded.client.trajectory("refitted", retired[0]["id"])
    assert [point["checkpoint"] for point in points] == ["v1", "v2"]
    assert not {row["id"] for row in retired} & set(onboarded.statuses(checkpoint="v3"))


def test_checkpoints_of_two_generations_are_compared(onboarded: Onboarded) -> None:
    latent = onboarded.matchings["v4"].latent
    rows = {row["id"]: row for row in onboarded.client.diff("refitted", "v1", "v4")}
    truth = lineage().truth(4).against_first
    wrong = {f"F{latent[i]}": (rows[f"F{latent[i]}"]["status"], right) for i, right in enumerate(truth)
             if rows[f"F{latent[i]}"]["status"] != right}  # fmt: skip
    assert not wrong, "said, planted"
    for event in lineage().events:
        if event.kind == "suppressed":
            row = rows[f"F{latent[event.feature]}"]
            assert abs(row["projection_ratio"] - event.level) < 0.1
            assert abs(row["strength_ratio"] - row["projection_ratio"]) < 0.15, "strengths have one unit"
    back = {row["id"]: row["status"] for row in onboarded.client.diff("refitted", "v3", "v1")}
    assert back[f"F{latent[next(e.feature for e in lineage().events if e.kind == 'removed')]}"] == "emerged"
