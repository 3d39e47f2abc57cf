"""Records dependency graphs, whether they changed since the parent, and the alerts they raise."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation as alerts
from featurewatch.service.alerts.events import ComparedFeature, DependenciesCompared
from featurewatch.service.dependencies import logic, queries
from featurewatch.service.dependencies.schemas import DependencyComparison
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.models import DependencyGraph
from featurewatch.service.verdicts import queries as verdicts


def record(
    session: Session, artifacts: ArtifactStore, *, checkpoint_id: str, run_id: str, rows: Sequence[dict[str, object]]
) -> dict[str, object]:
    """Write graphs of a checkpoint and whether they are rewired since the parent. Returns the run's result."""
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    family = verdicts.family(session, checkpoint.family_id)
    shared = {"checkpoint_id": checkpoint_id, "family_id": family.id, "run_id": run_id, "rewired": None}
    queries.put(session, [{**row, **shared} for row in rows])
    compared, results = [], []
    for row in rows:
        graph = queries.one(session, checkpoint_id, int(str(row["feature"])), str(row["method"]))
        assert graph is not None
        before = comparison = None
        if checkpoint.parent_id is not None:
            before = queries.one(session, checkpoint.parent_id, graph.feature, graph.method)
        if before is not None:
            comparison = logic.compare(session, artifacts, family, graph, before)
            graph.rewired = comparison.rewired
        compared.append(_compared(graph, comparison))
        results.append({"id": feature_id(graph.feature), "rewired": graph.rewired, "edges": len(graph.graph["edges"])})
    raised = alerts.evaluate(session, checkpoint, DependenciesCompared(family_id=family.id, features=compared))
    return {"family": family.name, "checkpoint": checkpoint.name, "features": results, "alerts": len(raised)}


def _compared(graph: DependencyGraph, comparison: DependencyComparison | None) -> ComparedFeature:
    name = feature_id(graph.feature)
    if comparison is None:
        return ComparedFeature(name, None, None, [], [])
    gained, lost = ([edge.feature for edge in edges] for edges in (comparison.gained, comparison.lost))
    return ComparedFeature(name, comparison.rewired, comparison.agreement, gained, lost)
