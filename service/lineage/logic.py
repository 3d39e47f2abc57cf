"""The lineage of features across re-fits."""

from sqlalchemy.orm import Session

from featurewatch.service.lineage import queries
from featurewatch.service.lineage.schemas import LINK_KINDS, LineageLink, Refit, link
from featurewatch.service.models import Checkpoint, Feature


def of_feature(session: Session, feature: Feature) -> list[LineageLink]:
    """All links of a feature to its predecessors and successors, over all generations."""
    return [link(row, name) for row, name in queries.of_feature(session, feature.family_id, feature.number)]


def refit(session: Session, checkpoint: Checkpoint) -> Refit | None:
    """The re-fit made by a checkpoint's run; None if it did not re-fit."""
    counts = queries.counts(session, checkpoint.id)
    if not counts:
        return None
    why = str((checkpoint.quality or {}).get("fit", "refit"))
    return Refit(why=why, **{kind: counts.get(kind, 0) for kind in LINK_KINDS})
