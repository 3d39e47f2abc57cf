"""Requests, reads and compares the dependencies of features."""

from collections.abc import Sequence

import numpy as np
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.checkpoints.contents import ACTIVATIONS
from featurewatch.service.dependencies import judge, queries, schemas, store
from featurewatch.service.features import logic as features
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnprocessableError
from featurewatch.service.models import Checkpoint, DependencyGraph, Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.signatures import queries as signatures
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import GONE, Status

AUTOMATIC_PRIORITY = -1
"""Priority of automatic runs: checkpoints that wait for their verdicts go first."""
FEATURES_PER_SIGNATURE = 3
"""How many of a signature's strongest features are examined automatically. Each takes a minute or two."""


def create(session: Session, family: Family, checkpoint: Checkpoint, body: schemas.DependenciesIn) -> Run:
    """Queue a run that finds the dependencies of some features in a checkpoint.

    Raises 404 for an unknown feature, 409 if the checkpoint is not judged or has no model.
    """
    checkpoints.check_judged(checkpoint)
    if _lacks_model(family, checkpoint):
        raise ConflictError(
            f"Finding dependencies requires running the model. {checkpoint.name} has only precomputed activations, or "
            "the family has no text.",
            code="model-needed",
        )
    if body.hook_point is not None and body.hook_point not in checkpoint.hook_points:
        raise UnprocessableError(
            f"{checkpoint.name} was read at {', '.join(checkpoint.hook_points)}, not at {body.hook_point}.",
            code="unknown-hook-point",
        )
    known = verdicts.statuses(session, checkpoint.id)
    numbers = sorted({features.get(session, family, name).number for name in body.features})
    missing = [feature_id(number) for number in numbers if number not in known]
    if missing:
        raise UnprocessableError(
            f"{checkpoint.name} was judged with a dictionary that does not contain {', '.join(missing)}.",
            code="feature-not-in-checkpoint",
        )
    return _queue(session, checkpoint, numbers, body)


def queue_watched(session: Session, checkpoint_id: str) -> list[Run]:
    """Queue runs for the features of a checkpoint that are watched or carry a signature, if the policy asks for it.

    The parent comes first, with the features not yet examined there, so that there is something to compare with.
    No run is queued without such features or without a model.
    """
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    family = verdicts.family(session, checkpoint.family_id)
    if not Policy.model_validate(family.policy).dependencies:
        return []
    wanted = [*queries.watched(session, family.id), *signatures.carriers(session, family.id, FEATURES_PER_SIGNATURE)]
    wanted = list(dict.fromkeys(wanted))
    parent = verdicts.checkpoint(session, checkpoint.parent_id) if checkpoint.parent_id else None
    queued = []
    if parent is not None:
        known = {graph.feature for graph in queries.at_checkpoint(session, parent.id)}
        queued.append(_queue_present(session, family, parent, [number for number in wanted if number not in known]))
    queued.append(_queue_present(session, family, checkpoint, wanted))
    return [run for run in queued if run is not None]


def _queue_present(session: Session, family: Family, checkpoint: Checkpoint, wanted: Sequence[int]) -> Run | None:
    """Queue a run for the `wanted` features that the checkpoint has. None if there are none, or no model."""
    if _lacks_model(family, checkpoint) or queries.waiting(session, checkpoint.id):
        return None
    statuses = verdicts.statuses(session, checkpoint.id)
    numbers = [number for number in wanted if statuses.get(number, Status.ABSENT) not in GONE][: schemas.MAX_FEATURES]
    if not numbers:
        return None
    body = schemas.DependenciesIn(features=[feature_id(number) for number in numbers])
    return _queue(session, checkpoint, numbers, body, AUTOMATIC_PRIORITY)


def get(
    session: Session,
    artifacts: ArtifactStore,
    family: Family,
    number: int,
    *,
    checkpoint: str | None,
    baseline: str | None,
    method: str | None,
) -> schemas.Dependencies:
    """A feature's dependencies in a checkpoint (by default the one examined last), compared with a baseline if named.

    Raises 404 if they have not been examined.
    """
    if checkpoint is None:
        newest = queries.newest_checkpoint(session, family.id, number)
        if newest is None:
            raise _unknown(family, number, "any checkpoint")
        chosen = verdicts.checkpoint(session, newest)
    else:
        chosen = checkpoints.get(session, family, checkpoint)
    row = queries.one(session, chosen.id, number, method)
    if row is None:
        raise _unknown(family, number, chosen.name)
    comparison = None
    if baseline is not None:
        other = checkpoints.get(session, family, baseline)
        before = queries.one(session, other.id, number, row.method)
        if before is None:
            raise _unknown(family, number, other.name)
        comparison = compare(session, artifacts, family, row, before)
    return schemas.view(row, chosen.name, comparison)


def compare(
    session: Session, artifacts: ArtifactStore, family: Family, row: DependencyGraph, baseline: DependencyGraph
) -> schemas.DependencyComparison:
    """Compare a graph with the baseline's, over the source features that are present in both checkpoints."""
    name = checkpoint_queries.names(session, [baseline.checkpoint_id])[baseline.checkpoint_id]
    present = _present(session, row.checkpoint_id) & _present(session, baseline.checkpoint_id)
    if row.feature not in present:
        return _not_compared(name, "the feature is not present in both checkpoints")
    if row.hook_point != baseline.hook_point:
        return _not_compared(
            name,
            f"it was read at {row.hook_point} in this checkpoint and at {baseline.hook_point} in {name}; request both "
            "at the same hook point",
        )
    try:
        after, before = (store.load(artifacts, graph.artifact) for graph in (row, baseline))
    except FileNotFoundError:
        return _not_compared(name, "the data of one of the checkpoints were removed; request its dependencies again")
    new, old = (profile.select(present) for profile in (after, before))
    keys = sorted(set(new) | set(old))
    if not keys:
        return _not_compared(name, "no feature at an earlier hook point contributes to it in either checkpoint")
    silent = np.zeros(len(after.counts))
    sums = [np.stack([profile.get(key, silent) for key in keys], 1) for profile in (old, new)]
    policy = Policy.model_validate(family.policy)
    targets = queries.in_both(session, row.checkpoint_id, baseline.checkpoint_id, row.method)
    rewiring = judge.compare((sums[0], before.counts), (sums[1], after.counts), policy, max(targets, 1))
    kinds: dict[str, list[schemas.ChangedEdge]] = {"gained": [], "lost": [], "changed": []}
    for change in rewiring.changes:
        hook, number = keys[change.index]
        kinds[change.kind].append(
            schemas.ChangedEdge(
                feature=feature_id(number),
                hook_point=hook,
                before=round(change.before, 6),
                after=round(change.after, 6),
                change_ci=(round(change.lo, 6), round(change.hi, 6)),
                q=change.q,
            )
        )
    return schemas.DependencyComparison(
        baseline=name,
        compared=len(keys),
        **kinds,
        agreement=rewiring.agreement,
        agreement_ci=rewiring.agreement_ci,
        p_value=rewiring.p_value,
        rewired=rewiring.rewired,
        why_not="too few positions or too much noise to compare" if rewiring.rewired is None else None,
    )


def _present(session: Session, checkpoint_id: str) -> set[int]:
    """Features that are known to be written in a checkpoint."""
    absent = {*GONE, Status.INDETERMINATE}
    return {number for number, status in verdicts.statuses(session, checkpoint_id).items() if status not in absent}


def _queue(
    session: Session, checkpoint: Checkpoint, numbers: Sequence[int], body: schemas.DependenciesIn, priority: int = 0
) -> Run:
    params = body.model_dump(mode="json") | {"features": [feature_id(number) for number in numbers]}
    return runs.create(
        session,
        family_id=checkpoint.family_id,
        checkpoint_id=checkpoint.id,
        kind=RunKind.DEPENDENCIES,
        params=params,
        priority=priority,
    )


def _lacks_model(family: Family, checkpoint: Checkpoint) -> bool:
    return checkpoint.uri.startswith(ACTIVATIONS) or not (family.positions or {}).get("documents")


def _not_compared(baseline: str, why: str) -> schemas.DependencyComparison:
    return schemas.DependencyComparison(
        baseline=baseline, compared=0, gained=[], lost=[], changed=[], agreement=None, agreement_ci=None,
        p_value=None, rewired=None, why_not=why,
    )  # fmt: skip


def _unknown(family: Family, number: int, where: str) -> NotFoundError:
    return NotFoundError(
        f"The dependencies of {feature_id(number)} in {where} of {family.name} have not been examined. Request them "
        f"with POST /v1/families/{family.name}/checkpoints/{{name}}/dependencies.",
        code="no-dependencies",
    )
