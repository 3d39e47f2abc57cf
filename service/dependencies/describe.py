"""Describes in words what a feature's dependencies show that its strength does not."""

from collections.abc import Sequence

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from featurewatch.service.dependencies import logic, queries
from featurewatch.service.dependencies.schemas import ChangedEdge, DependencyComparison
from featurewatch.service.features import queries as features
from featurewatch.service.features.words import name_of
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.verdicts import queries as verdicts

NAMED = 3


class DependencyFinding(BaseModel):
    """A feature that is written, but is computed from different features or has no effect."""

    feature: str
    status: str | None = Field(description="Its status in the checkpoint.")
    rewired: bool = Field(description="Whether it is computed from different features than at the baseline.")
    effective: bool | None = Field(description="False if nothing downstream uses it. Null if not examined.")
    agreement: float | None = Field(description="Agreement of its edges with those at the baseline.")
    what: str = Field(description="The finding in words.")


def findings(
    session: Session, artifacts: ArtifactStore, family: Family, checkpoint: Checkpoint, baseline: Checkpoint | None
) -> list[DependencyFinding]:
    """Features of a checkpoint that were rewired since the baseline or have no effect."""
    graphs = queries.at_checkpoint(session, checkpoint.id)
    if not graphs:
        return []
    numbers = [graph.feature for graph in graphs]
    rows = features.names(session, family.id, numbers)
    statuses = verdicts.statuses(session, checkpoint.id, numbers)
    changed = []
    for graph in graphs:
        before = baseline and queries.one(session, baseline.id, graph.feature, graph.method)
        compared = logic.compare(session, artifacts, family, graph, before) if before else None
        rewired = bool(compared and compared.rewired)
        effective = None if graph.effect is None else bool(graph.effect["effective"])
        if not rewired and effective is not False:
            continue
        row = rows[graph.feature]
        parts = [_rewired(compared)] if compared and rewired else []
        parts += ["nothing downstream uses it"] if effective is False else []
        status = statuses.get(graph.feature)
        name = name_of(feature_id(graph.feature), row.label, row.auto_label)
        changed.append(
            DependencyFinding(
                feature=feature_id(graph.feature),
                status=status,
                rewired=rewired,
                effective=effective,
                agreement=compared.agreement if compared else None,
                what=f"{name} is {status or 'written'}, but {' and '.join(parts)}",
            )
        )
    return changed


def _rewired(compared: DependencyComparison) -> str:
    changes = (("gained", compared.gained), ("lost", compared.lost))
    parts = [f"{kind} {_names(edges)}" for kind, edges in changes if edges]
    if compared.agreement is not None:
        parts.append(f"agreement {compared.agreement:.2f}")
    return f"computed from different features than at {compared.baseline} ({'; '.join(parts)})"


def _names(edges: Sequence[ChangedEdge]) -> str:
    rest = len(edges) - NAMED
    return ", ".join(edge.feature for edge in edges[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
