"""What a run logs is kept with it: as the run's holder, in batches, within limits, and without secrets."""

import logging
import threading
from pathlib import Path

import pytest
import structlog
from sqlalchemy import event, update

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.models import LogLine, Run
from featurewatch.service.runs import logic, queries
from featurewatch.service.runs.lines import FIRST, LAST
from featurewatch.service.runs.schemas import Level
from featurewatch.workers.activations.models import loading
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution.log_lines import MOST_CHARACTERS
from tests.workers.conftest import wait_for

log = structlog.get_logger("featurewatch.worker")


@pytest.fixture(autouse=True)
def quiet():
    """Logging as a worker has it, but nothing on the stream: what is kept does not go by its level."""
    configure_logging(Settings(log_level="CRITICAL"))
    yield
    configure_logging(Settings())


def lines(installation, run_id, **options):
    wanted = {"attempt": None, "levels": Level.INFO.and_above, "beyond": 0} | options
    with installation.database.read() as session:
        return session.scalars(queries.lines(run_id, **wanted).order_by(LogLine.number)).all()


def events(installation, run_id, **options):
    return [line.event for line in lines(installation, run_id, **options)]


def test_a_run_says_what_it_does(installation):
    run_id = installation.queue(installation.add_family())
    installation.run_next()
    found = lines(installation, run_id)
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    assert [(line.attempt, line.level, line.event) for line in found] == [
        (1, "info", "claimed"),
        (1, "info", "stage"),
        (1, "info", "stage"),
        (1, "info", "succeeded"),
    ]
    assert [line.fields for line in found[:3]] == [{"kind": "steps"}, {"stage": "harvest"}, {"stage": "measure"}]
    assert set(found[-1].fields["seconds"]) == {"harvest", "measure"}
    assert sorted(line.at for line in found) == [line.at for line in found]
    assert installation.run(run_id).lines == len(found)


@pytest.mark.parametrize(("kind", "said"), [("stumble", "ZeroDivisionError: division by zero"), ("refuse", "128")])
def test_what_went_wrong_is_its_last_line(installation, kind, said):
    run_id = installation.queue(installation.add_family(), kind)
    installation.run_next()
    *_, last = lines(installation, run_id)
    assert (last.event, last.level) == ("failed", "error" if kind == "stumble" else "warning")
    if kind == "refuse":
        assert last.fields["detail"].endswith(said), "bad input: no traceback is of use"
    else:
        assert last.fields["exception"].startswith("Traceback")
        assert 'in stumble\n    raise ZeroDivisionError("division by zero")' in last.fields["exception"]
        assert last.fields["exception"].endswith(said)


def test_a_success_that_was_not_committed_is_none(installation):
    run_id = installation.queue(installation.add_family())

    def breaks(execution):
        with execution.write() as session:
            execution.finish(session, {})
            raise ZeroDivisionError

    installation.run_next(pipelines={"steps": breaks})
    assert events(installation, run_id) == ["claimed", "failed"]


def test_a_killed_worker_leaves_its_lines_and_the_next_one_adds_its_own(installation, start_worker):
    run_id = installation.queue(installation.add_family(), steps=4, seconds=0.3)
    first = start_worker()
    wait_for(lambda: "stage" in events(installation, run_id))
    first.kill()
    start_worker()
    wait_for(lambda: installation.run(run_id).state == "succeeded")
    assert events(installation, run_id, attempt=1) == ["claimed", "stage", "the worker stopped responding"]
    assert events(installation, run_id, attempt=2) == ["claimed", "stage", "stage", "succeeded"]
    (silent,) = lines(installation, run_id, levels=Level.ERROR.and_above)
    assert "did not renew its lease in attempt 1 of 3, stage harvest" in silent.fields["detail"]


@pytest.mark.parametrize("taken_over", [False, True])
def test_who_lost_the_run_adds_nothing_any_more(installation, taken_over):
    """Neither while the run waits for another worker nor when it has one; and the other's lines are its own."""
    run_id = installation.queue(installation.add_family())
    lost = threading.Event()

    def goes_on(execution):
        log.info("before")
        wait_for(lambda: "before" in events(installation, run_id))
        assert lost.wait(30)
        log.info("after")
        wait_for(lambda: not execution.beat())
        execution.check()

    worker = threading.Thread(target=installation.run_next, kwargs={"pipelines": {"steps": goes_on}})
    worker.start()
    wait_for(lambda: "before" in events(installation, run_id))
    with installation.database.write() as session:
        session.execute(update(Run).values(lease_until=clock.utcnow()))
        assert logic.reap(session, clock.utcnow()) == [run_id]
        if taken_over:
            assert logic.claim(session, worker="another", lease_seconds=60)
    lost.set()
    worker.join(30)
    assert not worker.is_alive()
    assert events(installation, run_id) == ["claimed", "before", "the worker stopped responding"]


def test_lines_are_written_many_at_a_time(installation):
    commits = []
    event.listen(installation.database.writer, "commit", lambda _connection: commits.append(1))

    def talks(execution):
        for number in range(300):
            log.info("so far", number=number)

    run_id = installation.queue(installation.add_family())
    commits.clear()
    installation.run_next(pipelines={"steps": talks})
    assert [line.fields["number"] for line in lines(installation, run_id)[1:-1]] == list(range(300))
    assert len(commits) < 30


@pytest.mark.parametrize("in_parts", [False, True], ids=["at once", "in parts"])
def test_of_a_long_log_the_beginning_and_the_end_are_kept(installation, in_parts):
    run_id = installation.queue(installation.add_family())
    most = FIRST + LAST + 500

    def talks(execution):
        for number in range(2, most):  # 1 is `claimed`, the last one `succeeded`
            log.info("so far", number=number)
            if in_parts and number in (FIRST // 2, FIRST + LAST + 1, FIRST + LAST + 3):
                wait_for(lambda: installation.run(run_id).lines >= number)  # noqa: B023

    installation.run_next(pipelines={"steps": talks})
    found = lines(installation, run_id)
    assert [line.number for line in found] == [*range(1, FIRST + 2), *range(most - LAST + 1, most + 1)]
    gap = found[FIRST]
    assert (gap.level, gap.event, gap.fields) == ("warning", "lines left out", {"lines": 500})
    assert all(line.fields["number"] == line.number for line in found[1:-1] if line is not gap)
    assert installation.run(run_id).lines == most == len(found) - 1 + gap.fields["lines"]


def test_a_line_is_bounded_and_any_database_takes_it(installation):
    run_id = installation.queue(installation.add_family())

    def odd(execution):
        log.info("x" * 50_000)
        log.info("odd", at=Path("/x"), loss=float("nan"), nul="a\0b", half="\ud800", deep={"a": [1, (2, b"c")]})
        log.info("wide", **{f"field{number}": "y" * 1000 for number in range(50)})
        raise RuntimeError("begins " + "z" * 50_000 + " ends")

    installation.run_next(pipelines={"steps": odd})
    _, long, found, wide, failed = lines(installation, run_id)
    assert len(long.event) < MOST_CHARACTERS + 50 and "characters ...]" in long.event
    assert found.fields == {
        "at": "/x", "loss": None, "nul": "a\N{REPLACEMENT CHARACTER}b", "half": "\N{REPLACEMENT CHARACTER}",
        "deep": {"a": [1, [2, "b'c'"]]},
    }  # fmt: skip
    assert list(wide.fields) == ["cut"] and len(wide.fields["cut"]) < MOST_CHARACTERS + 50
    assert failed.fields["exception"].startswith("Traceback") and failed.fields["exception"].endswith("z ends")
    assert len(failed.fields["exception"]) < MOST_CHARACTERS + 50


def test_secrets_are_not_kept(installation):
    secrets = {
        "setting": installation.settings.secret_key.get_secret_value(),
        "address": "cannot open postgresql://someone:hunter2@host/db",
        "header": "Authorization: Bearer abcdefg",
        "key": "refused fw_0123456789abcdefghjkmnpqrstvwxyz0123456789abcd",
        "webhook": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "signed": "GET https://store.example/a?X-Amz-Signature=deadbeef&x=1 failed",
    }
    run_id = installation.queue(installation.add_family())

    def careless(execution):
        log.info("told " + secrets["setting"], **secrets)
        raise RunError("a.b", secrets["address"])

    installation.run_next(pipelines={"steps": careless})
    _, told, failed = lines(installation, run_id)
    assert told.event == "told ***"
    assert told.fields == {
        "setting": "***",
        "address": "cannot open postgresql://***@host/db",
        "header": "Authorization: Bearer ***",
        "key": "refused ***",
        "webhook": "***",
        "signed": "GET https://store.example/a?*** failed",
    }
    assert failed.fields["detail"] == "cannot open postgresql://***@host/db"


def test_libraries_are_heard_where_they_warn(installation):
    configure_logging(Settings(log_level="INFO"))
    assert loading  # which makes the library's lines go our way
    library = logging.getLogger("transformers.modeling")
    run_id = installation.queue(installation.add_family())

    def loads(execution):
        library.info("loading")
        library.warning("%d weights are %s", 3, "missing")
        library.log(25, "a level that only it knows")
        log.debug("not worth a row")

    installation.run_next(pipelines={"steps": loads})
    log.info("of no run")
    assert [(line.level, line.event) for line in lines(installation, run_id)] == [
        ("info", "claimed"),
        ("warning", "3 weights are missing"),
        ("info", "succeeded"),
    ]
    assert lines(installation, run_id)[1].fields == {"by": "transformers.modeling"}


def test_the_log_goes_with_its_run(installation):
    run_id = installation.queue(installation.add_family(), "quiet")
    installation.run_next()
    with installation.database.write() as session:
        session.query(logic.Bell).delete()
        session.delete(session.get_one(Run, run_id))
    assert lines(installation, run_id) == []
