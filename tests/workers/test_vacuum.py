"""Retention: what nothing refers to goes after some hours, at a moment when no worker has a run of the family."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, text

from featurewatch.service.kit import clock
from featurewatch.service.kit.artifacts import ArtifactStore, content_key
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.models import (
    AuditEntry,
    Base,
    Bell,
    Checkpoint,
    Code,
    Family,
    IdempotencyRecord,
    Run,
    Shard,
    Signature,
    Unreferenced,
)
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs import queries as run_queries
from featurewatch.service.store import logic
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.workers.sweeps import Sweeper
from tests import factories
from tests.workers.conftest import Installation, wait_for

HOURS = 24


def artifact(installation: Installation, family: str, kind: str, what: str = "x", files: int = 0) -> str:
    """Something in the store: a file, or a folder of files; its name."""
    name = f"{family}/{kind}-{content_key(what=what)}"
    with factories.unrecorded(installation.artifacts).create(name) as place:
        if files:
            place.mkdir()
        for number in range(files):
            (place / f"{number}.safetensors").write_text("12345")
        if not files:
            place.write_text("123")
    return name


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch):
    """Sets the database's clock to so many hours from now."""
    return lambda hours: monkeypatch.setattr(clock, "database_now", lambda _: utcnow() + timedelta(hours=hours))


def vacuum(installation: Installation, rounds: int = 1) -> int:
    """A sweeper that has just started, until its round is over; how many artifacts it removed."""
    sweeper = Sweeper(installation.settings, installation.database, publish=None)
    removed = sweeper.vacuum()
    while sweeper._unswept:
        removed += sweeper.vacuum()
    return removed


def there(installation: Installation, *names: str) -> list[bool]:
    return [installation.artifacts.exists(name) for name in names]


def test_what_nothing_refers_to_goes_after_some_hours(installation: Installation, at) -> None:
    family = installation.add_family()
    loose = artifact(installation, family, "measures")
    folder = artifact(installation, family, "activations", files=3)
    strange = artifact(installation, family, "notes")
    with installation.database.write() as session:
        row = session.get_one(Family, family)
        checkpoint = factories.checkpoint(session, row, "v1")
        kept = artifact(installation, family, "dictionary")
        factories.source(session, checkpoint, "resid_post.12", 4).dictionary = kept
    at(0)
    assert vacuum(installation) == 0
    at(HOURS - 1)
    assert vacuum(installation) == 0
    assert there(installation, loose, folder) == [True, True]
    at(HOURS + 1)
    assert vacuum(installation) == 2
    assert there(installation, loose, folder, kept, strange) == [False, False, True, True]
    with installation.database.read() as session:
        assert session.scalars(select(Unreferenced.artifact)).all() == []


def test_own_codes_and_their_rows_stay_with_the_checkpoint(installation: Installation, at) -> None:
    """Those of another attempt go. A child that has its parent's rows keeps them."""
    family = installation.add_family()
    kinds = ("code", "examples", "own-code", "rows")
    kept, loose = ([artifact(installation, family, kind, what) for kind in kinds] for what in ("kept", "loose"))
    with installation.database.write() as session:
        row = session.get_one(Family, family)
        parent = factories.checkpoint(session, row, "v1")
        for checkpoint in (parent, factories.checkpoint(session, row, "v2", parent=parent)):
            session.add(
                Code(
                    checkpoint_id=checkpoint.id, family_id=family, generation=1, artifact=kept[0], examples=kept[1],
                    own_code=kept[2], rows=kept[3], n_positions=10, n_features=1, extra={},
                )
            )  # fmt: skip
    for hours, removed in ((0, 0), (HOURS + 1, len(loose))):
        at(hours)
        assert vacuum(installation) == removed
    assert there(installation, *kept, *loose) == [True] * 4 + [False] * 4
    with installation.database.write() as session:
        session.delete(session.scalars(select(Code)).first())
    for hours in (2 * HOURS, 4 * HOURS):
        at(hours)
        assert vacuum(installation) == 0
    assert there(installation, *kept) == [True] * 4


def test_what_is_referred_to_again_stays(installation: Installation, at) -> None:
    family = installation.add_family()
    name = artifact(installation, family, "contrast")
    at(0)
    vacuum(installation)
    with installation.database.write() as session:
        row = session.get_one(Family, family)
        checkpoint = factories.checkpoint(session, row, "v1")
        signature = Signature(
            family_id=family, name="s", description="", settings={}, contrast=name, n_rows=1, n_positive=1,
            baseline_id=checkpoint.id, chosen=None,
        )  # fmt: skip
        session.add(signature)
    at(HOURS + 1)
    assert vacuum(installation) == 0
    with installation.database.write() as session:
        session.delete(session.scalars(select(Signature)).one())
    at(2 * HOURS)  # it had a reference an hour less than a day ago
    assert vacuum(installation) == 0
    assert there(installation, name) == [True]
    at(3 * HOURS + 1)
    assert vacuum(installation) == 1
    assert there(installation, name) == [False]


def test_what_was_written_anew_a_moment_ago_stays(installation: Installation, at) -> None:
    """A request has written it, and is about to refer to it."""
    family = installation.add_family()
    name = artifact(installation, family, "contrast")
    with installation.database.write() as session:
        session.add(Unreferenced(artifact=name, since=utcnow() - timedelta(days=9)))
    at(0)
    assert vacuum(installation) == 0
    assert there(installation, name) == [True]


def test_a_family_that_a_worker_works_on_is_left_alone(installation: Installation, at) -> None:
    family = installation.add_family()
    name = artifact(installation, family, "code")
    run_id = installation.queue(family)
    at(0)
    vacuum(installation)
    with installation.database.write() as session:
        run = runs.claim(session, worker="w", lease_seconds=60)
        assert run is not None
    at(HOURS + 1)
    assert vacuum(installation) == 0
    assert there(installation, name) == [True]
    with installation.database.write() as session:
        run = session.get_one(Run, run_id)
        runs.finish(session, run_id=run_id, attempt=run.attempt, state=run_queries.RunState.SUCCEEDED)
    assert vacuum(installation) == 1


def test_no_worker_takes_a_run_while_artifacts_are_removed(installation: Installation) -> None:
    family = installation.add_family()
    run_id, taken = installation.queue(family), []

    def claim() -> None:
        with installation.database.write() as session:
            run = runs.claim(session, worker="w", lease_seconds=60)
            taken.append(run and run.id)

    thread = threading.Thread(target=claim)
    with installation.database.write() as session:
        assert runs.block_claims(session, family)
        thread.start()
        if not installation.database.is_sqlite:  # there the one lock of the file keeps it waiting
            wait_for(lambda: session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))
        assert taken == []
        assert session.scalar(select(Run.state).where(Run.id == run_id)) == "queued"
    thread.join()
    assert taken == [run_id]


def test_a_removal_whose_transaction_fails_is_done_the_next_time(installation: Installation, at, monkeypatch) -> None:
    family = installation.add_family()
    names = [artifact(installation, family, "measures", what) for what in "ab"]
    at(0)
    vacuum(installation)
    at(HOURS + 1)
    remove = ArtifactStore.remove
    with monkeypatch.context() as patch:

        def fail(self: ArtifactStore, name: str, **options: bool) -> None:
            remove(self, name, **options)
            raise OSError("the disk")

        patch.setattr(ArtifactStore, "remove", fail)
        with pytest.raises(OSError, match="the disk"):
            vacuum(installation)
    assert sorted(there(installation, *names)) == [False, True]
    assert vacuum(installation) == 1
    assert there(installation, *names) == [False, False]
    with installation.database.read() as session:
        assert session.scalars(select(Unreferenced.artifact)).all() == []


def test_a_turn_removes_a_limited_number(installation: Installation) -> None:
    family = installation.add_family()
    for what in range(5):
        artifact(installation, family, "measures", str(what))
    stored = installation.artifacts.listing(family)
    found = []
    for hours in (0, 30, 30, 30, 30):
        with installation.database.write() as session:
            done = logic.vacuum(
                session, installation.artifacts, installation.settings, family, stored,
                now=utcnow() + timedelta(hours=hours), most=2,
            )  # fmt: skip
        stored = {name: size for name, size in stored.items() if name not in done.removed}
        found.append((len(done.removed), done.left))
    assert found == [(0, False), (2, True), (2, True), (1, False), (0, False)]


def test_shards_stay_until_their_run_has_ended(installation: Installation, at) -> None:
    family = installation.add_family()
    folder = artifact(installation, family, "shards", files=2)
    run_id = installation.queue(family)
    with installation.database.write() as session:
        session.add(
            Shard(
                run_id=run_id,
                run_attempt=1,
                number=0,
                folder=folder,
                size=1,
                worker=None,
                lease_until=None,
                done_at=None,
            )
        )
    for hours in (0, HOURS + 1):
        at(hours)
        assert vacuum(installation) == 0
    with installation.database.write() as session:
        runs.request_cancel(session, session.get_one(Run, run_id))
    at(HOURS + 2)
    assert vacuum(installation) == 0
    at(2 * HOURS + 3)
    assert vacuum(installation) == 1


def chain(installation: Installation, length: int, fitted: tuple[int, ...], **policy: object) -> list[str]:
    """A family of judged checkpoints, each the child of the one before, with activations; their ids."""
    family = installation.add_family()
    parent, ids = None, []
    with installation.database.write() as session:
        row = session.get_one(Family, family)
        row.policy = row.policy | policy
        for number in range(length):
            parent = factories.checkpoint(session, row, f"v{number}", parent=parent)
            source = factories.source(session, parent, "resid_post.12", 4)
            source.activations = artifact(installation, family, "activations", str(number), files=2)
            session.add(
                Code(
                    checkpoint_id=parent.id, family_id=family, generation=1, artifact="c", examples="e", n_positions=1,
                    n_features=1, extra={"fitted": True} if number in fitted else {},
                )
            )  # fmt: skip
            ids.append(parent.id)
    return ids


def dropped(installation: Installation, ids: list[str], newest: int) -> list[int]:
    with installation.database.read() as session:
        family = session.scalars(select(Family)).one()
        return sorted(ids.index(one) for one in logic.surplus(session, family, newest))


@pytest.mark.parametrize(
    ("newest", "anchors", "expected"),
    [
        (0, 2, []),
        (1, 1, [1, 2, 3, 4, 5, 6]),
        (1, 2, [1, 2, 3, 4, 6]),
        (2, 3, [1, 3, 4]),
        (8, 1, []),
    ],
)
def test_activations_of_the_newest_and_of_the_anchors_are_kept(
    installation: Installation, newest: int, anchors: int, expected: list[int]
) -> None:
    """Eight checkpoints, fitted at 0, 2 and 5."""
    ids = chain(installation, 8, fitted=(0, 2, 5), anchors=anchors)
    assert dropped(installation, ids, newest) == expected


def test_what_a_waiting_run_builds_on_is_kept(installation: Installation) -> None:
    """A child of 3 waits: its parent, and the anchors of a re-fit there."""
    ids = chain(installation, 8, fitted=(0, 2, 5), anchors=2)
    with installation.database.write() as session:
        parent = session.get_one(Checkpoint, ids[3])
        family = session.get_one(Family, parent.family_id)
        child = factories.checkpoint(session, family, "side", parent=parent, state="registered")
        runs.create(session, family_id=family.id, checkpoint_id=child.id, kind="onboard", params={})
    assert dropped(installation, ids, 1) == [1, 4, 6]


def test_released_activations_go_in_two_steps(installation: Installation, at) -> None:
    """First the reference, hours later the files: a backup of in between finds all that it refers to."""
    ids = chain(installation, 4, fitted=(0,), anchors=1)
    settings = installation.settings.model_copy(update={"keep_activations": 1})
    installation.settings = settings
    with installation.database.read() as session:
        names = [verdicts.sources(session, one)["resid_post.12"].activations for one in ids]
    at(0)
    assert vacuum(installation) == 0
    with installation.database.read() as session:
        kept = [verdicts.sources(session, one)["resid_post.12"].activations is not None for one in ids]
    assert kept == [True, False, False, True]
    assert there(installation, *map(str, names)) == [True] * 4
    at(HOURS + 1)
    assert vacuum(installation) == 2
    assert there(installation, *map(str, names)) == [True, False, False, True]


def test_old_entries_are_forgotten_by_the_settings(installation: Installation) -> None:
    old = utcnow() - timedelta(days=400)
    run_id = installation.queue(installation.add_family())
    with installation.database.write() as session:
        runs.request_cancel(session, session.get_one(Run, run_id))
        for moment in (old, utcnow()):
            session.add(AuditEntry(at=moment, actor="a", method="POST", path="/", status=201, request_id="r"))
            session.add(
                IdempotencyRecord(key=str(moment), fingerprint="", status=1, headers={}, body="", created_at=moment)
            )
            session.add(Bell(run_id=run_id, rung_at=moment))

    def left(**settings: object) -> list[int]:
        changed = installation.settings.model_copy(update=settings)
        Sweeper(changed, installation.database, publish=None).tidy()
        with installation.database.read() as session:
            return [len(session.scalars(select(table)).all()) for table in (AuditEntry, IdempotencyRecord)]

    assert left(audit_days=0.0, answer_hours=1e6) == [2, 2]
    assert left(audit_days=500.0) == [2, 1]
    assert left() == [1, 1]
    with installation.database.read() as session:
        assert session.scalars(select(Bell.rung_at).where(Bell.rung_at < old + timedelta(days=1))).all() == []


def test_a_remote_store_is_listed_and_cleared(installation: Installation, tmp_path) -> None:
    store = ArtifactStore("memory://vacuum", tmp_path / "cache")
    installation.artifacts = store
    names = [artifact(installation, "fam_a", "activations", files=2), artifact(installation, "fam_a", "code")]
    artifact(installation, "fam_ab", "code")
    assert store.listing("fam_a") == {names[0]: 10, names[1]: 3}
    assert abs(store.modified(names[0]) - utcnow()) < timedelta(minutes=5)
    store.remove(names[0])
    assert store.listing("fam_a") == {names[1]: 3}
    assert not (tmp_path / "cache" / names[0]).exists()
    store.remove(names[0])
    with pytest.raises(FileNotFoundError):
        store.modified(names[0])
    assert store.listing("fam_none") == {}


def test_columns_with_names_of_artifacts_are_marked() -> None:
    """A new column that holds one gets `info=ARTIFACT`: what no marked column names is removed."""
    marked = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if column.info.get("artifact")
    }
    assert marked >= {
        "source.dictionary", "source.activations", "code.artifact", "code.examples", "code.own_code", "code.rows",
        "signature.contrast", "reading.activations", "dependency_graph.artifact",
    }  # fmt: skip
