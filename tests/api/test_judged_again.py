"""Answers come from what is kept in memory of a checkpoint: what is judged again, or told later, is seen at once."""

from dataclasses import replace

import numpy as np
from fastapi.testclient import TestClient

from featurewatch.service.kit.db import Database
from featurewatch.service.recording import verdicts as recording
from featurewatch.service.verdicts import past, queries, stored
from featurewatch.service.verdicts.judge import judge
from featurewatch.service.verdicts.policy import Policy
from tests.unit.verdicts.test_compare import Lineage
from tests.unit.verdicts.test_past import discovered, lineage_of

URL = "/v1/families/smol"


def seen(client: TestClient, feature: str) -> tuple[str, str, int]:
    """Status of a feature in v3 against v1, against its parent, and the report's count of suppressed ones."""
    report = client.get(f"{URL}/checkpoints/v3/report").json()
    against_first = client.get(f"{URL}/diff?from=v1&to=v3&q={feature}").json()["data"]
    against_parent = client.get(f"{URL}/features?checkpoint=v3&q={feature}").json()["data"]
    return against_first[0]["status"], against_parent[0]["status"], report["counts"]["suppressed"]


def test_a_checkpoint_that_is_judged_again(client: TestClient, database: Database) -> None:
    with database.write() as session:
        lineage = Lineage(session)
    before = seen(client, "F20")
    assert before[:2] == ("present", "present")
    outcome = lineage.outcomes["v3"]
    factor = np.where(outcome.numbers == 20, 0.3, 1.0).astype(np.float32)
    ratios = {name: getattr(outcome.evidence, name) * factor for name in ("projection", "strength_ratio")}
    evidence = replace(outcome.evidence, **ratios)
    changed = replace(
        outcome, evidence=evidence, judgement=judge(evidence, Policy()), strength=outcome.strength * factor
    )
    with database.write() as session:
        recording.record(session, checkpoint_id=lineage.checkpoints["v3"].id, run_id="again", outcome=changed)
    assert seen(client, "F20") == ("suppressed", "suppressed", before[2] + 1)


def test_a_past_that_is_told_later(client: TestClient, database: Database) -> None:
    with database.write() as session:
        lineage = lineage_of(session)
    assert client.get(f"{URL}/diff?from=v1&to=v3&q=F50").json()["data"] == []
    before = seen(client, "F20")
    with database.write() as session:
        past.record(session, lineage.family, discovered(lineage, ["v1", "v2", "v3"]))
    assert seen(client, "F50") == ("suppressed", "suppressed", before[2] + 1)
    against_parent = client.get(f"{URL}/diff?from=v1&to=v2&q=F51").json()["data"]
    assert [row["status"] for row in against_parent] == ["emerged"]


def test_what_is_packed_are_the_rows(database: Database) -> None:
    """Every checkpoint has its verdicts as columns, also after its past was written; without them the rows answer."""
    with database.write() as session:
        lineage = lineage_of(session)
        past.record(session, lineage.family, discovered(lineage, ["v1", "v2", "v3"]))
        for name, checkpoint in lineage.checkpoints.items():
            assert queries.packed(session, checkpoint.id, stored.LAYOUT) is not None, name
            packed = stored.read(session, checkpoint, keep=False).standing
            queries.revise(session, checkpoint)
            assert queries.packed(session, checkpoint.id, stored.LAYOUT) is None
            rows = stored.read(session, checkpoint, keep=False).standing
            assert len(rows.numbers) > 20
            assert packed.figures.keys() == rows.figures.keys()
            for ours, theirs in [(packed.numbers, rows.numbers), (packed.statuses, rows.statuses),
                                 *((packed.figures[name], rows.figures[name]) for name in rows.figures)]:  # fmt: skip
                np.testing.assert_array_equal(ours, theirs)
