"""Dependencies: asking for them, reading them, and comparing two checkpoints."""

from collections.abc import Sequence

import numpy as np
from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation as alerts
from featurewatch.service.alerts.events import ComparedFeature
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.dependencies import judge, queries, store
from featurewatch.service.dependencies.schemas import (
    MOST_FEATURES,
    ChangedEdge,
    Comparison,
    Dependencies,
    DependenciesIn,
    view,
)
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

BROUGHT = "activations+"
"""URIs of checkpoints whose activations were brought along."""
AFTER_OTHERS = -1
"""Priority of what nobody asked for: a checkpoint that waits for its verdicts goes first."""
OF_A_SIGNATURE = 3
"""Features, the strongest ones, that are looked at unasked: each costs a minute or two."""


def create(session: Session, family: Family, checkpoint: Checkpoint, body: DependenciesIn) -> Run:
    """Queue a run that finds the dependencies of some features in a checkpoint.

    Raises 404 for features, 409 where the checkpoint is not judged or has no model.
    """
    checkpoints.check_judged(checkpoint)
    _require_model(family, checkpoint)
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
            f"{checkpoint.name} was judged without {', '.join(missing)}: the dictionary did not have it then, or has "
            "it no longer.",
            code="feature-not-in-checkpoint",
        )
    return _queue(session, checkpoint, numbers, body)


def queue_watched(session: Session, checkpoint_id: str) -> list[Run]:
    """Queue runs for the features of a checkpoint that are watched or carry a signature, if the policy says so.

    Its parent comes first, with those that were not looked at there: one that is watched since, say, would have nothing
    to be compared with. No run where there are no such features, or no model to read.
    """
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    family = verdicts.family(session, checkpoint.family_id)
    if not Policy.model_validate(family.policy).dependencies:
        return []
    wanted = [*queries.watched(session, family.id), *signatures.carriers(session, family.id, OF_A_SIGNATURE)]
    wanted = list(dict.fromkeys(wanted))
    parent = verdicts.checkpoint(session, checkpoint.parent_id) if checkpoint.parent_id else None
    found = []
    if parent is not None:
        known = {graph.feature for graph in queries.at_checkpoint(session, parent.id)}
        found.append(_queue_present(session, family, parent, [number for number in wanted if number not in known]))
    found.append(_queue_present(session, family, checkpoint, wanted))
    return [run for run in found if run is not None]


def _queue_present(session: Session, family: Family, checkpoint: Checkpoint, wanted: Sequence[int]) -> Run | None:
    """A run for those of some features that a checkpoint has."""
    if _lacks_model(family, checkpoint) or queries.waiting(session, checkpoint.id):
        return None
    there = {number for number, status in verdicts.statuses(session, checkpoint.id).items() if status not in GONE}
    numbers = [number for number in wanted if number in there][:MOST_FEATURES]
    if not numbers:
        return None
    body = DependenciesIn(features=[feature_id(number) for number in numbers])
    return _queue(session, checkpoint, numbers, body, AFTER_OTHERS)


def get(
    session: Session,
    artifacts: ArtifactStore,
    family: Family,
    number: int,
    *,
    checkpoint: str | None,
    baseline: str | None,
    method: str | None,
) -> Dependencies:
    """A feature's dependencies in a checkpoint (the one looked at last), compared with a baseline where one is named.

    Raises 404 where nobody has looked.
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
    compared = None
    if baseline is not None:
        other = checkpoints.get(session, family, baseline)
        found = queries.one(session, other.id, number, row.method)
        if found is None:
            raise _unknown(family, number, other.name)
        compared = compare(session, artifacts, family, row, found)
    return view(row, chosen.name, compared)


def compare(
    session: Session, artifacts: ArtifactStore, family: Family, row: DependencyGraph, baseline: DependencyGraph
) -> Comparison:
    """A graph against the baseline's, over the source features that are present in both checkpoints."""
    name = checkpoint_queries.names(session, [baseline.checkpoint_id])[baseline.checkpoint_id]
    present = [_present(session, one.checkpoint_id) for one in (row, baseline)]
    if row.feature not in present[0] & present[1]:
        return _nothing(name, "the feature is not present in both checkpoints")
    if row.hook_point != baseline.hook_point:
        return _nothing(
            name, f"it was read at {row.hook_point} here and at {baseline.hook_point} there; ask for one hook point"
        )
    try:
        after, before = (store.load(artifacts, one.artifact) for one in (row, baseline))
    except FileNotFoundError:
        return _nothing(name, "the sums of one of the checkpoints are not kept any more; ask for them again")
    new, old = (profile.select(present[0] & present[1]) for profile in (after, before))
    keys = sorted(set(new) | set(old))
    if not keys:
        return _nothing(name, "no feature at an earlier hook point leads to it in either checkpoint")
    silent = np.zeros(len(after.counts))
    sums = [np.stack([one.get(key, silent) for key in keys], 1) if keys else silent[:, None] for one in (old, new)]
    policy = Policy.model_validate(family.policy)
    targets = queries.in_both(session, row.checkpoint_id, baseline.checkpoint_id, row.method)
    found = judge.compare((sums[0], before.counts), (sums[1], after.counts), policy, max(targets, 1))
    kinds: dict[str, list[ChangedEdge]] = {"gained": [], "lost": [], "changed": []}
    for change in found.changes:
        hook, number = keys[change.index]
        kinds[change.kind].append(
            ChangedEdge(
                feature=feature_id(number),
                hook_point=hook,
                before=round(change.before, 6),
                after=round(change.after, 6),
                change_ci=(round(change.lo, 6), round(change.hi, 6)),
                q=change.q,
            )
        )
    return Comparison(
        baseline=name, compared=len(keys), gained=kinds["gained"], lost=kinds["lost"], changed=kinds["changed"],
        agreement=found.agreement, agreement_ci=found.agreement_ci, p_value=found.p_value, rewired=found.rewired,
        why_not="too few positions or too much noise to tell two profiles apart" if found.rewired is None else None,
    )  # fmt: skip


def record(
    session: Session, artifacts: ArtifactStore, *, checkpoint_id: str, run_id: str, rows: Sequence[dict[str, object]]
) -> dict[str, object]:
    """Write graphs of a checkpoint, and whether they are rewired against the parent's. Returns the run's result."""
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    family = verdicts.family(session, checkpoint.family_id)
    shared = {"checkpoint_id": checkpoint_id, "family_id": family.id, "run_id": run_id, "rewired": None}
    queries.put(session, [{**row, **shared} for row in rows])
    features, told = [], []
    for row in rows:
        graph = queries.one(session, checkpoint_id, int(str(row["feature"])), str(row["method"]))
        assert graph is not None
        before = compared = None
        if checkpoint.parent_id is not None:
            before = queries.one(session, checkpoint.parent_id, graph.feature, graph.method)
        if before is not None:
            compared = compare(session, artifacts, family, graph, before)
            graph.rewired = compared.rewired
        features.append(_compared(graph, compared))
        told.append({"id": feature_id(graph.feature), "rewired": graph.rewired, "edges": len(graph.graph["edges"])})
    raised = alerts.dependencies_compared(session, family=family, checkpoint=checkpoint, compared=features)
    return {"family": family.name, "checkpoint": checkpoint.name, "features": told, "alerts": len(raised)}


def _compared(graph: DependencyGraph, compared: Comparison | None) -> ComparedFeature:
    name = feature_id(graph.feature)
    if compared is None:
        return ComparedFeature(name, None, None, [], [])
    gained, lost = ([edge.feature for edge in some] for some in (compared.gained, compared.lost))
    return ComparedFeature(name, compared.rewired, compared.agreement, gained, lost)


def _present(session: Session, checkpoint_id: str) -> set[int]:
    """Features that are written in a checkpoint, as far as that is known."""
    absent = {*GONE, Status.INDETERMINATE}
    return {number for number, status in verdicts.statuses(session, checkpoint_id).items() if status not in absent}


def _queue(
    session: Session, checkpoint: Checkpoint, numbers: Sequence[int], body: DependenciesIn, priority: int = 0
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
    return checkpoint.uri.startswith(BROUGHT) or not (family.positions or {}).get("documents")


def _require_model(family: Family, checkpoint: Checkpoint) -> None:
    if _lacks_model(family, checkpoint):
        raise ConflictError(
            f"Dependencies go through the model itself, and of {checkpoint.name} there are only activations, or the "
            "family has no text to read it on.",
            code="model-needed",
        )


def _nothing(baseline: str, why: str) -> Comparison:
    return Comparison(
        baseline=baseline, compared=0, gained=[], lost=[], changed=[], agreement=None, agreement_ci=None,
        p_value=None, rewired=None, why_not=why,
    )  # fmt: skip


def _unknown(family: Family, number: int, where: str) -> NotFoundError:
    return NotFoundError(
        f"The dependencies of {feature_id(number)} in {where} of {family.name} are not known (yet); POST "
        f"/v1/families/{family.name}/checkpoints/{{name}}/dependencies finds them.",
        code="no-dependencies",
    )
