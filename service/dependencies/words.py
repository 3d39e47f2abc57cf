"""What the circuit of a feature says that its strength does not, in words."""

from collections.abc import Sequence

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from featurewatch.service.dependencies import logic, queries
from featurewatch.service.dependencies.schemas import ChangedEdge, Comparison
from featurewatch.service.features import queries as features
from featurewatch.service.features.words import name_of
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.verdicts import queries as verdicts

NAMED = 3


class CircuitFinding(BaseModel):
    """A feature that is written, but made or used otherwise than its strength tells."""

    feature: str
    status: str | None = Field(description="Its verdict in the checkpoint.")
    rewired: bool = Field(description="Computed from other features than at the baseline.")
    effective: bool | None = Field(description="False: nothing that follows makes use of it. Null: not asked.")
    agreement: float | None
    what: str


def findings(
    session: Session, artifacts: ArtifactStore, family: Family, checkpoint: Checkpoint, baseline: Checkpoint | None
) -> list[CircuitFinding]:
    """Features of a checkpoint that were rewired since the baseline, or are there without effect."""
    graphs = queries.at_checkpoint(session, checkpoint.id)
    if not graphs:
        return []
    numbers = [graph.feature for graph in graphs]
    named, found = features.names(session, family.id, numbers), []
    statuses = verdicts.statuses(session, checkpoint.id, numbers)
    for graph in graphs:
        before = baseline and queries.one(session, baseline.id, graph.feature, graph.method)
        compared = logic.compare(session, artifacts, family, graph, before) if before else None
        rewired = bool(compared and compared.rewired)
        effective = None if graph.effect is None else bool(graph.effect["effective"])
        if not rewired and effective is not False:
            continue
        row = named[graph.feature]
        parts = [_rewired(compared)] if compared and rewired else []
        parts += ["nothing that follows makes use of it"] if effective is False else []
        status = statuses.get(graph.feature)
        name = name_of(feature_id(graph.feature), row.label, row.auto_label)
        found.append(
            CircuitFinding(
                feature=feature_id(graph.feature),
                status=status,
                rewired=rewired,
                effective=effective,
                agreement=compared.agreement if compared else None,
                what=f"{name} is {status or 'there'}, but {', and '.join(parts)}",
            )
        )
    return found


def _rewired(compared: Comparison) -> str:
    edges = [f"{kind} {_names(some)}" for kind, some in (("gained", compared.gained), ("lost", compared.lost)) if some]
    agreement = f"agreement {compared.agreement:.2f}" if compared.agreement is not None else ""
    detail = "; ".join(part for part in (*edges, agreement) if part)
    return f"computed from other features than at {compared.baseline} ({detail})"


def _names(edges: Sequence[ChangedEdge]) -> str:
    rest = len(edges) - NAMED
    return ", ".join(edge.feature for edge in edges[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
