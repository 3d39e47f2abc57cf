"""Which activations of a family are kept: those that may still be needed."""

from sqlalchemy.orm import Session

from featurewatch.service.models import Family
from featurewatch.service.store import queries
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.generations import ancestry, anchors, itself
from featurewatch.service.verdicts.policy import Policy


def surplus(session: Session, family: Family, newest: int) -> set[str]:
    """Ids of the judged checkpoints whose activations can be released. None if `newest` is 0.

    Activations are kept for the `newest` judged checkpoints, for the checkpoints of unfinished runs and their parents,
    and for the anchors that a re-fit of a child of any of these would train on.
    """
    if not newest:
        return set()
    judged = verdicts.judged(session, family.id)
    wanted = {row.id for row in judged[-newest:]} | queries.awaited(session, family.id)
    most = Policy.model_validate(family.policy).anchors
    kept = set(wanted)
    inner = {row.parent_id for row in judged if row.id in wanted}
    for row in judged:
        if row.id in wanted - inner:  # the last of its line; its anchors include those of its ancestors
            line = [itself(session, row), *ancestry(session, row)]
            kept |= {anchor.checkpoint.id for anchor in anchors(line, row.hook_points, most)}
    return {id_ for id_, _ in queries.activations(session, family.id)} & {row.id for row in judged} - kept
