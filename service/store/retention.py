"""Which activations of a family are kept: those that something may still have to read."""

from sqlalchemy.orm import Session

from featurewatch.service.models import Family
from featurewatch.service.store import queries
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.generations import ancestry, anchors, itself
from featurewatch.service.verdicts.policy import Policy


def surplus(session: Session, family: Family, newest: int) -> set[str]:
    """Ids of the judged checkpoints whose activations are let go; none where `newest` is 0.

    Kept are those of the `newest` judged ones, of what unfinished runs are about and its parents, and of the anchors
    that a re-fit of a child of any of these trains on. Checkpoints that wait for the first fit are not judged.
    """
    if not newest:
        return set()
    judged = verdicts.judged(session, family.id)
    wanted = {row.id for row in judged[-newest:]} | queries.awaited(session, family.id)
    most = Policy.model_validate(family.policy).anchors
    kept = set(wanted)
    inner = {row.parent_id for row in judged if row.id in wanted}
    for row in judged:
        if row.id in wanted - inner:  # the ends of its lines: what comes before them has anchors among theirs
            line = [itself(session, row), *ancestry(session, row)]
            kept |= {one.checkpoint.id for one in anchors(line, row.hook_points, most)}
    return {id_ for id_, _ in queries.activations(session, family.id)} & {row.id for row in judged} - kept
