"""What the first dictionary missed, found by an extension: it did not emerge, and its past is filled in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import sparse

from benchmarks.planted_data import Lineage, make_lineage, write_checkpoint
from benchmarks.planted_score import match
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints.schemas import CheckpointIn
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.features import logic as features
from featurewatch.service.features.schemas import Point
from featurewatch.service.models import Alert, Checkpoint, Code, Event, Feature
from featurewatch.service.verdicts.compare import compare
from featurewatch.workers.pipelines import PIPELINES
from featurewatch.workers.pipelines.shared import files
from tests.workers.conftest import Installation

LAST = 4
SHAPE = {
    "n_checkpoints": LAST, "n_positions": 8000, "width": 48, "n_planted": 60, "n_suppressed": 0, "n_removed": 9,
    "n_relocated": 6, "n_born": 3, "lowest_rate": 0.02, "highest_rate": 0.03,
}  # fmt: skip
FIT = {"n_features": 32, "k": 2, "steps": 500, "batch_size": 256, "learning_rate": 0.005}
"""Half as many latents as there are features."""


class Judged:
    """A planted lineage, judged by a real worker."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.installation, self.lineage = installation, make_lineage(3, **SHAPE)
        with installation.database.write() as session:
            body = {"name": "planted", "hook_points": ["resid_post.1"], "crosscoder": FIT}
            families.create(session, installation.settings, FamilyIn.model_validate(body))
        for number in range(1, LAST + 1):
            write_checkpoint(self.lineage, number, folder / f"v{number}")
            with installation.database.write() as session:
                uri = f"activations+{(folder / f'v{number}').as_uri()}"
                body = CheckpointIn(name=f"v{number}", uri=uri)
                checkpoints.register(session, installation.settings, families.get(session, "planted"), body)
            run_id = installation.run_next(pipelines=PIPELINES)
            assert run_id
            run = installation.run(run_id)
            assert run.state == "succeeded", run.error

    def planted(self) -> dict[int, int]:
        """Number of a feature -> the planted one that it is."""
        with self.installation.database.read() as session:
            last = session.query(Checkpoint).filter_by(name=f"v{LAST}").one()
            artifact = session.get_one(Code, last.id).artifact
        code, numbers, _ = files.load_code(self.installation.artifacts.path(artifact), torch.device("cpu"))
        found = match(self.lineage.codes, sparse.csr_array(code.to_scipy()), numbers.tolist())
        return {int(latent): planted for planted, latent in enumerate(found.latent) if latent >= 0}


def found_late(judged: Judged, session: Any) -> dict[int, tuple[Feature, int, list[Point]]]:
    """Number -> (feature, checkpoint that discovered it, its trajectory) of what is some planted feature."""
    planted, family = judged.planted(), families.get(session, "planted")
    names = {row.id: int(row.name[1:]) for row in session.query(Checkpoint)}
    return {
        row.number: (row, names[row.born_in], features.trajectory(session, family, row).points)
        for row in session.query(Feature).filter_by(origin="discovered")
        if row.number in planted
    }


def truth(lineage: Lineage, planted: int, checkpoint: int) -> str:
    return "present" if checkpoint == 1 else lineage.truth(checkpoint).against_parent[planted]


def test_what_was_missed_did_not_emerge_and_has_a_past(installation: Installation, tmp_path: Path) -> None:
    judged = Judged(installation, tmp_path)
    planted, lineage = judged.planted(), judged.lineage
    births = {event.feature for event in lineage.events if event.kind == "born"}
    with installation.database.read() as session:
        family = families.get(session, "planted")
        emerged = {row.number for row in session.query(Feature).filter_by(origin="emerged")}
        assert {planted.get(number) for number in emerged} == births
        late = found_late(judged, session)
        assert any(found_in >= 3 for _, found_in, _ in late.values())
        for number, (_, found_in, points) in late.items():
            assert [point.checkpoint for point in points] == [f"v{c}" for c in range(1, LAST + 1)], number
            assert points[found_in - 1].status != "emerged"
            for checkpoint, point in enumerate(points[: found_in - 1], start=1):
                assert truth(lineage, planted[number], checkpoint) == "present", "nothing happened before"
                assert (point.status, point.baseline) == ("present", f"v{checkpoint - 1}" if checkpoint > 1 else None)
                assert point.projection_ratio == pytest.approx(1, abs=0.15)
                assert point.strength and point.readability and point.readability > 0.2
                assert point.firings == points[found_in - 1].firings
        rows = {row.name: row for row in session.query(Checkpoint)}
        # Ancestors compare over it as well: nothing happened to it between them.
        between = {row.feature: row.status for row in compare(session, family, rows["v2"], rows["v1"]).rows()}
        assert {between[number] for number, (_, found_in, _) in late.items() if found_in >= 3} == {"present"}
        assert session.query(Alert).count() == 0
        assert session.query(Event).count() == LAST, "one for each checkpoint, none for the past"
