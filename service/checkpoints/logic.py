"""Registers checkpoints and looks them up."""

import math
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import contents, queries
from featurewatch.service.checkpoints.contents import Contents
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.inspect import Examined, Expected, inspect
from featurewatch.service.checkpoints.schemas import CheckpointIn, CheckpointOut, CheckpointState, view
from featurewatch.service.config import Settings
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.pages import MAX_LIMIT, Page, Pager
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnavailableError, UnprocessableError
from featurewatch.service.models import Checkpoint, Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs import queries as run_queries
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.schemas import view as run_view
from featurewatch.service.verdicts.generations import kinds

COMPARE_SECONDS = 0.15
"""How long a registration waits for digests that decide whether the checkpoint is already registered."""
HASHED_PER_SECOND = 300_000_000
"""Bytes per second on a slow disk, for `Retry-After`."""
_USABLE = ("registered", "harvested", "judged")


def get(session: Session, family: Family, name: str) -> Checkpoint:
    """The checkpoint of a family with this name, or 404."""
    checkpoint = queries.by_name(session, family.id, name)
    if checkpoint is None:
        raise NotFoundError(f"Family {family.name} has no checkpoint {name}.", code="unknown-checkpoint")
    return checkpoint


def get_judged(session: Session, family: Family, name: str | None) -> Checkpoint:
    """A judged checkpoint by name, or the newest one. Raises 404 if there is none, 409 if it is not judged yet."""
    if name is None:
        judged = queries.newest(session, family.id, ["judged"])
        if not judged:
            raise NotFoundError(f"No checkpoint of {family.name} has been judged yet.", code="nothing-judged")
        return judged[0]
    return check_judged(get(session, family, name))


def check_judged(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint if it is judged; raise 409 otherwise."""
    if checkpoint.state != "judged":
        raise ConflictError(
            f"Checkpoint {checkpoint.name} has not been judged (its state is {checkpoint.state}).", code="not-judged"
        )
    return checkpoint


def page(session: Session, family: Family, paging: Pager, state: CheckpointState | None = None) -> Page[CheckpointOut]:
    """A page of a family's checkpoints, oldest first."""
    order = f"checkpoints:{family.id}:{state}"
    fetched = queries.page(session, family.id, state=state, after=paging.after(order), limit=paging.limit)
    rows, cursor = paging.page(fetched, order, lambda row: (row.created_at, row.id))
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
    """Inspect a registration's files and resolve moving references. Reads only.

    Large files are hashed only if nothing else can tell whether they equal those registered under the same name.
    Raises 422 (UnusableError) for unusable URIs and files, and 503 `content-pending` while hashing is in progress.
    """
    expected = Expected(
        hook_points=_hook_points(family, body),
        positions=(family.positions or {}).get("count"),
        widths=queries.widths(session, family.id),
    )
    examined = inspect(body.uri, body.adapter, settings, expected)
    existing = queries.by_name(session, family.id, body.name)
    before = Contents.from_json(existing.contents or {}) if existing else None
    if existing is None or before is None or not contents.undecided(before, examined.contents):
        return examined
    try:
        hashed = contents.digested_within(examined.files, COMPARE_SECONDS)
    except OSError as error:
        raise UnusableError(
            "content-changed", f"{error}. Register the checkpoint again when its files are complete."
        ) from error
    if hashed is None:
        raise UnavailableError(
            f"The files are being compared with those of {existing.name}. Try again in a moment.",
            code="content-pending",
            title="Comparison in progress",
            headers={"Retry-After": str(math.ceil(1 + examined.contents.size / HASHED_PER_SECOND))},
        )
    return replace(examined, contents=hashed)


def register(
    session: Session, settings: Settings, family: Family, body: CheckpointIn, examined: Examined | None = None
) -> tuple[Checkpoint, Run | None, bool]:
    """Register a checkpoint and queue its run. `examined` is the result of `examine`.

    Returns the checkpoint, its run and whether either is new. Registering the same content under the same name returns
    the existing checkpoint, and None for a run that was deleted. The name of a failed checkpoint may be reused for
    other content; the row is kept and gets a new run.
    Raises 409 (name used for other content) or 422 (parent, hook points, files), with nothing written.
    """
    examined = examined or examine(session, settings, family, body)
    existing = queries.by_name(session, family.id, body.name)
    if existing is None:
        checkpoint = Checkpoint(family_id=family.id, name=body.name)
        parent = _parent(session, family, body, None)
        _fill(checkpoint, body, parent, examined)
        try:
            with session.begin_nested():
                session.add(checkpoint)
        except IntegrityError:  # another request took the name since the lookup
            existing = get(session, family, body.name)
        else:
            return checkpoint, _queue(session, checkpoint, body.priority), True
    parent_id = existing.parent_id if body.parent is None else _parent_id(session, family, body.parent)
    if _same_terms(existing, body, parent_id, examined) and _same_content(existing, body, examined):
        run = queries.newest_runs(session, [existing.id]).get(existing.id)
        if run is not None or existing.state != "failed":
            return existing, run, False
    if existing.state != "failed":
        raise ConflictError(
            f"{family.name} already has a checkpoint {body.name} with different content, parent, hook points or fit.",
            code="name-used",
        )
    _fill(existing, body, _parent(session, family, body, existing), examined)
    return existing, _queue(session, existing, body.priority), True


def _queue(session: Session, checkpoint: Checkpoint, priority: int) -> Run:
    # A checkpoint is judged after its parent, so the waiting ones need at least this priority.
    run_queries.raise_priority(session, checkpoint.family_id, RunKind.ONBOARD, priority)
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
            f"None of {', '.join(body.hook_points)} is of the same kind as the family's hook points "
            f"({', '.join(family.hook_points)}). For a model of another size, name hook points of the same kind, or "
            "the same number to pair them in order.",
            code="hook-point-not-in-family",
            title="Hook point not in the family",
        )
    return body.hook_points


def _same_terms(existing: Checkpoint, body: CheckpointIn, parent_id: str | None, examined: Examined) -> bool:
    """Whether parent, hook points and fit are the same. `metadata` may differ: it does when a CI job runs again."""
    deleted = {parent["name"] for parent in existing.deleted_parents}
    same_parent = parent_id == existing.parent_id or (not parent_id and body.parent in deleted)
    return same_parent and (list(existing.hook_points), existing.fit) == (examined.hook_points, body.fit)


def _same_content(existing: Checkpoint, body: CheckpointIn, examined: Examined) -> bool:
    """Whether a registration names the same bytes as an existing checkpoint, or the same commit or listing."""
    model = (existing.uri, existing.resolved_uri), (body.uri, examined.uri)
    adapter = (existing.adapter, existing.resolved_adapter), (body.adapter, examined.adapter)
    stored = Contents.from_json(existing.contents or {})
    return all(
        _same_part(stored.part(part), examined.contents.part(part), *references)
        for part, references in ((contents.MODEL, model), (contents.ADAPTER, adapter))
    )


def _same_part(
    before: Contents, now: Contents, old: tuple[str | None, str | None], new: tuple[str | None, str | None]
) -> bool:
    """Whether a model or adapter is the same: by its files if they are visible, else by (URI, resolved URI)."""
    if before.files and now.files:
        return contents.difference(before, now) is None
    return old[1] == new[1] if old[1] and new[1] else old[0] == new[0]


def resolve(session: Session, checkpoint_id: str, *, uri: str, adapter: str | None) -> None:
    """Record what a checkpoint's moving references resolved to, if registration could not tell."""
    checkpoint = session.get_one(Checkpoint, checkpoint_id)
    checkpoint.resolved_uri, checkpoint.resolved_adapter = uri, adapter


def identify(session: Session, checkpoint_id: str, read: Contents) -> None:
    """Record what a worker has read of a checkpoint: every file with its digest."""
    checkpoint = session.get_one(Checkpoint, checkpoint_id)
    checkpoint.contents, checkpoint.content_digest = read.to_json(), read.digest


def _parent_id(session: Session, family: Family, name: str) -> str:
    """Id of the named parent in any state; an empty string if it is unknown."""
    parent = queries.by_name(session, family.id, name)
    return parent.id if parent else ""


def _parent(session: Session, family: Family, body: CheckpointIn, row: Checkpoint | None) -> Checkpoint | None:
    """The parent of a new registration. `row` is the failed checkpoint whose name is being reused."""
    if body.parent is None:
        lineage = queries.lineage(session, family.id) if row else {}
        candidates = queries.newest(session, family.id, _USABLE)
        return next((each for each in candidates if row is None or not _descends(lineage, each.id, row.id)), None)
    parent = queries.by_name(session, family.id, body.parent)
    if parent is None or parent.name == body.name:
        raise UnprocessableError(
            f"{body.parent} is not another checkpoint of {family.name}.",
            code="unknown-parent",
            title="Unknown parent",
        )
    if parent.state not in _USABLE:
        raise UnprocessableError(
            f"Parent {parent.name} has {parent.state}, so nothing can be compared with it. Retry its run or name "
            "another parent.",
            code="parent-failed",
            title="Parent failed",
        )
    if queries.activations_kept(session, [parent.id]).get(parent.id) is False:
        raise ConflictError(
            f"The activations of {parent.name} were removed, so nothing can be compared with it. Name a later "
            "checkpoint, or register its files again under another name.",
            code="activations-gone",
        )
    if row is not None and _descends(queries.lineage(session, family.id), parent.id, row.id):
        raise UnprocessableError(f"{parent.name} is a descendant of {row.name} itself.", code="parent-cycle")
    return parent


def _descends(lineage: dict[str, str | None], checkpoint_id: str, ancestor_id: str) -> bool:
    current: str | None = checkpoint_id
    while current is not None and current != ancestor_id:
        current = lineage.get(current)
    return current is not None
