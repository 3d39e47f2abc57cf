"""The lineage of features: what re-fits made of them."""

from sqlalchemy.orm import Session

from featurewatch.service.lineage import queries
from featurewatch.service.lineage.schemas import LINK_KINDS, LineageLink, Refit, link
from featurewatch.service.models import Checkpoint, Feature


def of_feature(session: Session, feature: Feature) -> list[LineageLink]:
    """Where a feature came from and where it went, over all generations."""
    return [link(row, name) for row, name in queries.of_feature(session, feature.family_id, feature.number)]


def refit(session: Session, checkpoint: Checkpoint) -> Refit | None:
    """What the re-fit of a checkpoint's run did; None where it was none."""
    counts = queries.counts(session, checkpoint.id)
    if not counts:
        return None
    why = str((checkpoint.quality or {}).get("fit", "refit"))
    return Refit(why=why, **{kind: counts.get(kind, 0) for kind in LINK_KINDS})
