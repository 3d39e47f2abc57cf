"""Checkpoints: registering and finding them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import contents, queries
from featurewatch.service.checkpoints.contents import Contents
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.inspect import Examined, Expected, look
from featurewatch.service.checkpoints.schemas import CheckpointIn, CheckpointOut, CheckpointState, view
from featurewatch.service.config import Settings
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.pages import MAX_LIMIT, Page, Pager
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnavailableError, UnprocessableError
from featurewatch.service.models import Checkpoint, Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.schemas import view as run_view
from featurewatch.service.verdicts.generations import kinds

COMPARE_SECONDS = 0.15
"""How long a registration waits for digests that tell whether it is one that is there."""
HASHED_PER_SECOND = 300_000_000
"""Bytes, at least: what a slow disk gives. For telling when to ask again."""
_USABLE = ("registered", "harvested", "judged")


def get(session: Session, family: Family, name: str) -> Checkpoint:
    """The checkpoint of a family with this name, or 404."""
    checkpoint = queries.by_name(session, family.id, name)
    if checkpoint is None:
        raise NotFoundError(f"The family {family.name} has no checkpoint {name}.", code="unknown-checkpoint")
    return checkpoint


def get_judged(session: Session, family: Family, name: str | None) -> Checkpoint:
    """A judged checkpoint by name, or the newest one; 404 where there is none, 409 where it is not judged yet."""
    if name is None:
        found = queries.newest(session, family.id, ["judged"])
        if not found:
            raise NotFoundError(f"No checkpoint of {family.name} has been judged yet.", code="nothing-judged")
        return found[0]
    return check_judged(get(session, family, name))


def check_judged(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint; 409 where it is not judged yet."""
    if checkpoint.state != "judged":
        raise ConflictError(f"The checkpoint {checkpoint.name} is {checkpoint.state}, not judged.", code="not-judged")
    return checkpoint


def page(session: Session, family: Family, paging: Pager, state: CheckpointState | None = None) -> Page[CheckpointOut]:
    """A page of a family's checkpoints, oldest first."""
    order = f"checkpoints:{family.id}:{state}"
    found = queries.page(session, family.id, state=state, after=paging.after(order), limit=paging.limit)
    rows, cursor = paging.page(found, order, lambda row: (row.created_at, row.id))
    return Page(data=views(session, family, rows), next_cursor=cursor)


def views(session: Session, family: Family, rows: Sequence[Checkpoint]) -> list[CheckpointOut]:
    """Checkpoints of a family as the API returns them, each with its newest run."""
    ids = [row.id for row in rows]
    newest_runs = queries.newest_runs(session, ids)
    parents = queries.names(session, [row.parent_id for row in rows if row.parent_id])
    activations_kept = queries.activations_kept(session, ids)
    checkpoints = []
    for row in rows:
        run = run_view(newest_runs[row.id], family.name, row.name) if row.id in newest_runs else None
        parent = parents.get(row.parent_id or "")
        checkpoints.append(view(row, family.name, parent, run, activations_kept.get(row.id)))
    return checkpoints


def all_views(session: Session, family: Family) -> list[CheckpointOut]:
    """Every checkpoint of a family, oldest first."""
    rows = queries.of_family(session, family.id)
    pieces = (rows[start : start + MAX_LIMIT] for start in range(0, len(rows), MAX_LIMIT))
    return [checkpoint for piece in pieces for checkpoint in views(session, family, piece)]


def examine(session: Session, settings: Settings, family: Family, body: CheckpointIn) -> Examined:
    """Look at a registration's files, and resolve what moves. Reads only.

    Large files are hashed where only that can tell whether they are those that have the name already. Raises 422
    (UnusableError) for URIs and files that cannot be a checkpoint, and 503 `content-pending` while the
    hashing goes on.
    """
    expected = Expected(
        hook_points=_hook_points(family, body),
        positions=(family.positions or {}).get("count"),
        widths=queries.widths(session, family.id),
    )
    examined = look(body.uri, body.adapter, settings, expected)
    found = queries.by_name(session, family.id, body.name)
    before = Contents.from_json(found.contents or {}) if found else None
    if found is None or before is None or not contents.undecided(before, examined.contents):
        return examined
    try:
        hashed = contents.digested_within(examined.files, COMPARE_SECONDS)
    except OSError as error:
        raise UnusableError("content-changed", f"{error}; register the checkpoint when its files are whole.") from error
    if hashed is None:
        raise UnavailableError(
            f"The files are being compared with those of {found.name}; ask again in a moment.",
            code="content-pending",
            title="Content is being compared",
            headers={"Retry-After": str(math.ceil(1 + examined.contents.size / HASHED_PER_SECOND))},
        )
    return replace(examined, contents=hashed)


def register(
    session: Session, settings: Settings, family: Family, body: CheckpointIn, examined: Examined | None = None
) -> tuple[Checkpoint, Run | None, bool]:
    """Register a checkpoint: its row, its run and the run's bell. `examined` is what `examine` returned.

    Returns the checkpoint, its run and whether anything is new: the same content under the same name gives what is
    there, without a run where that was deleted. A failed checkpoint's name may be taken by other content; the row is
    used again, with a new run.
    Raises 409 (name used for other content), 422 (parent, hook points, files); then nothing is written.
    """
    examined = examined or examine(session, settings, family, body)
    found = queries.by_name(session, family.id, body.name)
    if found is None:
        checkpoint = Checkpoint(family_id=family.id, name=body.name)
        parent = _parent(session, family, body, None)
        _fill(checkpoint, body, parent, examined)
        try:
            with session.begin_nested():
                queries.add(session, checkpoint)
        except IntegrityError:  # another request took the name between our look and our write
            found = get(session, family, body.name)
        else:
            return checkpoint, _queue(session, checkpoint, body.priority), True
    parent_id = found.parent_id if body.parent is None else _parent_id(session, family, body.parent)
    if _same_terms(found, body, parent_id, examined) and _same_content(found, body, examined):
        run = queries.newest_runs(session, [found.id]).get(found.id)
        if run is not None or found.state != "failed":
            return found, run, False
    if found.state != "failed":
        raise ConflictError(
            f"The name {body.name} is used by another checkpoint of {family.name}: other content, parent, hook points "
            "or fit.",
            code="name-used",
        )
    _fill(found, body, _parent(session, family, body, found), examined)
    return found, _queue(session, found, body.priority), True


def _queue(session: Session, checkpoint: Checkpoint, priority: int) -> Run:
    # A checkpoint is judged after its parent: those that wait may not be overtaken.
    runs.raise_priority(session, family_id=checkpoint.family_id, kind=RunKind.ONBOARD, priority=priority)
    return runs.create(
        session,
        family_id=checkpoint.family_id,
        checkpoint_id=checkpoint.id,
        kind=RunKind.ONBOARD,
        params={"fit": checkpoint.fit},
        priority=priority,
    )


def _fill(checkpoint: Checkpoint, body: CheckpointIn, parent: Checkpoint | None, examined: Examined) -> None:
    parent_id = parent.id if parent else None
    checkpoint.uri = body.uri
    checkpoint.adapter = body.adapter
    checkpoint.parent_id = parent_id
    checkpoint.deleted_parents = []
    checkpoint.hook_points = examined.hook_points
    checkpoint.fit = body.fit
    checkpoint.details = body.metadata
    checkpoint.resolved_uri = examined.uri
    checkpoint.resolved_adapter = examined.adapter
    checkpoint.contents = examined.contents.to_json()
    checkpoint.content_digest = None
    checkpoint.state = "registered"
    checkpoint.generation = None
    checkpoint.quality = None
    checkpoint.judged_at = None
    checkpoint.created_at = utcnow()


def _hook_points(family: Family, body: CheckpointIn) -> list[str]:
    if body.hook_points is None:
        return family.hook_points
    as_many = len(body.hook_points) == len(family.hook_points)
    if not as_many and not kinds(body.hook_points) & kinds(family.hook_points):
        raise UnprocessableError(
            f"{', '.join(body.hook_points)}: none of a kind that the family has, {', '.join(family.hook_points)}. A "
            "model of another size names hook points of the family's kinds, or as many as the family has, which are "
            "compared by their place.",
            code="hook-point-not-in-family",
            title="Hook point that the family has not",
        )
    return body.hook_points


def _same_terms(found: Checkpoint, body: CheckpointIn, parent_id: str | None, examined: Examined) -> bool:
    """Whether a registration asks for what is there. `metadata` is left out: a CI job that runs again has another."""
    deleted = {parent["name"] for parent in found.deleted_parents}
    same_parent = parent_id == found.parent_id or (not parent_id and body.parent in deleted)
    return same_parent and (list(found.hook_points), found.fit) == (examined.hook_points, body.fit)


def _same_content(found: Checkpoint, body: CheckpointIn, examined: Examined) -> bool:
    """Whether a registration names the same bytes as a checkpoint's, or the same commit or listing."""
    model = (found.uri, found.resolved_uri), (body.uri, examined.uri)
    adapter = (found.adapter, found.resolved_adapter), (body.adapter, examined.adapter)
    there = Contents.from_json(found.contents or {})
    return all(
        _same_part(there.part(part), examined.contents.part(part), *references)
        for part, references in ((contents.MODEL, model), (contents.ADAPTER, adapter))
    )


def _same_part(
    before: Contents, now: Contents, there: tuple[str | None, str | None], here: tuple[str | None, str | None]
) -> bool:
    """Whether a model, or an adapter, is the same: by its files or, where they are not in sight, by its references."""
    if before.files and now.files:
        return contents.difference(before, now) is None
    return there[1] == here[1] if there[1] and here[1] else there[0] == here[0]


def resolve(session: Session, checkpoint_id: str, *, uri: str, adapter: str | None) -> None:
    """Write what a checkpoint's moving references stand for, where its registration could not tell."""
    checkpoint = session.get_one(Checkpoint, checkpoint_id)
    checkpoint.resolved_uri, checkpoint.resolved_adapter = uri, adapter


def identify(session: Session, checkpoint_id: str, read: Contents) -> None:
    """Write what a worker has read of a checkpoint: every file with its digest."""
    checkpoint = session.get_one(Checkpoint, checkpoint_id)
    checkpoint.contents, checkpoint.content_digest = read.to_json(), read.digest


def _parent_id(session: Session, family: Family, name: str) -> str:
    """Id of the named parent, whatever its state; no id of any where it is unknown."""
    found = queries.by_name(session, family.id, name)
    return found.id if found else ""


def _parent(session: Session, family: Family, body: CheckpointIn, row: Checkpoint | None) -> Checkpoint | None:
    """The parent of a new registration. `row` is the failed checkpoint whose name is taken again."""
    if body.parent is None:
        lineage = queries.lineage(session, family.id) if row else {}
        candidates = queries.newest(session, family.id, _USABLE)
        return next((one for one in candidates if row is None or not _descends(lineage, one.id, row.id)), None)
    parent = queries.by_name(session, family.id, body.parent)
    if parent is None or parent.name == body.name:
        raise UnprocessableError(
            f"The parent {body.parent} is no other checkpoint of {family.name}.",
            code="unknown-parent",
            title="Unknown parent",
        )
    if parent.state not in _USABLE:
        raise UnprocessableError(
            f"The parent {parent.name} has {parent.state}; nothing can be compared with it.",
            code="parent-failed",
            title="Failed parent",
        )
    if queries.activations_kept(session, [parent.id]).get(parent.id) is False:
        raise ConflictError(
            f"The activations of {parent.name} were removed, so nothing can be compared with it; name a later "
            "checkpoint, or register its files once more under another name.",
            code="activations-gone",
        )
    if row is not None and _descends(queries.lineage(session, family.id), parent.id, row.id):
        raise UnprocessableError(f"{parent.name} comes from {row.name} itself.", code="parent-cycle")
    return parent


def _descends(lineage: dict[str, str | None], checkpoint_id: str, ancestor_id: str) -> bool:
    current: str | None = checkpoint_id
    while current is not None and current != ancestor_id:
        current = lineage.get(current)
    return current is not None
