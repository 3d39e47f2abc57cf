"""Alerts on what no judgement tells of: silence of a family, and runs that fail, as the sweep sees them."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select

from featurewatch.service.alerts import logic
from featurewatch.service.alerts.schemas import AlertRuleCreate, AlertRuleUpdate, MuteBody
from featurewatch.service.kit import clock
from featurewatch.service.models import Alert, AlertRule, Event, Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.workers.sweeps import Sweeper
from tests import factories
from tests.workers.toy import PIPELINES


@pytest.fixture
def watch(settings, database):
    """A sweep, and what it told: (type, summary) of the alerts since the last one."""
    told = set()

    def watch():
        Sweeper(settings, database, publish=None).sweep()
        with database.read() as session:
            events = session.scalars(select(Event).where(Event.type.startswith("alert.")).order_by(Event.created_at))
            new = [event for event in events if event.id not in told]
        told.update(event.id for event in new)
        return [(event.type.removeprefix("alert."), event.data["alert"]["summary"]) for event in new]

    return watch


@pytest.fixture
def rule(database):
    def rule(**condition):
        with database.write() as session:
            body = AlertRuleCreate.model_validate({"name": "r", "condition": condition})
            return logic.create_rule(session, body)[0].id

    return rule


@pytest.fixture
def fail(installation):
    """Runs a run of a family to its end, a failed one unless told otherwise; its id."""

    def fail(family, kind="refuse"):
        run_id = installation.queue(family, kind)
        installation.run_next()
        return run_id

    return fail


def alerts(database):
    with database.read() as session:
        return session.scalars(select(Alert).order_by(Alert.created_at)).all()


def judge(database, family_id, name):
    with database.write() as session:
        family = session.get_one(Family, family_id)
        factories.checkpoint(session, family, name, judged_at=clock.utcnow())


def test_silence_is_one_alert_until_a_checkpoint_is_judged(installation, database, rule, watch, time_machine):
    rule(kind="absence", days=7)
    loud, silent = installation.add_family("loud"), installation.add_family("silent")
    judge(database, silent, "v1")
    assert watch() == []
    time_machine(timedelta(days=6, hours=23))
    assert watch() == []
    time_machine(timedelta(hours=2))
    told = watch()
    assert [(kind, text[:36]) for kind, text in told] == [("raised", "no checkpoint was judged for 7 days ")] * 2
    assert {alert.family_id for alert in alerts(database)} == {loud, silent}, "a family without any is silent too"
    time_machine(timedelta(days=3))
    assert watch() == [], "goes on: told once"
    judge(database, silent, "v2")
    assert [kind for kind, _ in watch()] == ["resolved"]
    time_machine(timedelta(days=8))
    assert [kind for kind, _ in watch()] == ["raised"], "a new silence is a new alert"
    assert [alert.state for alert in alerts(database) if alert.family_id == silent] == ["resolved", "open"]


def test_a_silence_that_somebody_resolved_is_over_until_the_next(installation, database, rule, watch, time_machine):
    rule(kind="absence", days=7)
    family = installation.add_family()
    time_machine(timedelta(days=8))
    assert [kind for kind, _ in watch()] == ["raised"]
    with database.write() as session:
        logic.resolve(session, session.scalars(select(Alert)).one())
    assert [kind for kind, _ in watch()] == ["resolved"]
    time_machine(timedelta(days=8))
    assert watch() == []
    judge(database, family, "v1")
    time_machine(timedelta(days=8))
    assert [kind for kind, _ in watch()] == ["raised"]


def test_what_is_muted_is_told_when_the_mute_is_over(installation, database, rule, watch, time_machine):
    rule(kind="absence", days=7)
    installation.add_family()
    time_machine(timedelta(days=8))
    watch()
    with database.write() as session:
        logic.mute(session, session.scalars(select(Alert)).one(), MuteBody(hours=48))
    time_machine(timedelta(hours=47))
    assert watch() == []
    time_machine(timedelta(hours=2))
    assert [kind for kind, _ in watch()] == ["raised"], "it still holds"
    assert [alert.state for alert in alerts(database)] == ["open"]


def test_runs_that_fail_are_one_alert_until_one_succeeds(installation, database, rule, watch, fail):
    rule(kind="run_failed")
    family, other = installation.add_family("smol"), installation.add_family("other")
    first = fail(family)
    ((kind, summary),) = watch()
    assert kind == "raised"
    assert summary.startswith("refuse failed for v")
    second = fail(family)
    assert watch() == [], "goes on"
    (alert,) = alerts(database)
    assert [row["run"] for row in alert.evidence] == [first, second]
    assert alert.evidence[0]["error"]["detail"] == "resid_post.3 is 64 wide, the family's 128"
    assert alert.summary.startswith("refuse failed 2 times")
    fail(other, "stumble")
    assert len(watch()) == 1, "each family and kind by itself"
    fail(family, "steps")
    assert watch() == [], "another kind says nothing of this one"
    refused = installation.queue(family, "refuse")
    installation.run_next(pipelines={"refuse": PIPELINES["steps"]})
    assert installation.run(refused).state == "succeeded"
    assert [kind for kind, _ in watch()] == ["resolved"]
    fail(family)
    assert [kind for kind, _ in watch()] == ["raised"]
    assert [alert.state for alert in alerts(database)] == ["resolved", "open", "open"]


def test_a_run_that_is_tried_again_decides_when_it_ends(installation, database, rule, watch, fail):
    rule(kind="run_failed", runs=["refuse"])
    family = installation.add_family()
    failed = fail(family)
    watch()
    with database.write() as session:
        runs.retry(session, session.get_one(Run, failed))
    assert watch() == []
    installation.run_next()
    assert watch() == [], "failed again: the same alert"
    with database.write() as session:
        runs.retry(session, session.get_one(Run, failed))
    installation.run_next(pipelines={"refuse": PIPELINES["steps"]})
    assert [kind for kind, _ in watch()] == ["resolved"]


def test_so_many_failures_without_a_success(installation, database, rule, watch, fail):
    strict = rule(kind="run_failed", at_least=3)
    rule(kind="run_failed", runs=["onboard"])
    family = installation.add_family()
    fail(family)
    fail(family)
    assert watch() == []
    third = fail(family)
    assert len(watch()) == 1
    with database.write() as session:
        logic.resolve(session, session.scalars(select(Alert)).one())
    watch()
    assert watch() == [], "somebody has resolved it, and nothing has happened since"
    with database.write() as session:
        logic.change_rule(
            session,
            session.get_one(AlertRule, strict),
            AlertRuleUpdate.model_validate({"condition": {"kind": "run_failed", "at_least": 2}}),
        )
        runs.retry(session, session.get_one(Run, third))
    assert watch() == [], "two of the three that it was about are no news"
    installation.run_next()
    assert [kind for kind, _ in watch()] == ["raised"], "the third failed once more"
    with database.write() as session:
        logic.resolve(session, session.scalars(select(Alert).where(Alert.state == "open")).one())
    watch()
    fourth = fail(family)
    assert [kind for kind, _ in watch()] == ["raised"], "news"
    assert [row["run"] for row in alerts(database)[-1].evidence][2:] == [third, fourth]


def test_a_rule_that_is_disabled_raises_nothing_and_leaves_what_it_raised(
    installation, database, rule, watch, time_machine
):
    rule_id = rule(kind="absence", days=1)
    installation.add_family()
    time_machine(timedelta(days=2))

    def change(**body):
        with database.write() as session:
            logic.change_rule(session, session.get_one(AlertRule, rule_id), AlertRuleUpdate.model_validate(body))

    change(enabled=False)
    assert watch() == []
    change(enabled=True)
    assert len(watch()) == 1
    change(enabled=False)
    assert watch() == []
    change(enabled=True, condition={"kind": "watched"})
    assert [kind for kind, _ in watch()] == ["resolved"], "of a condition that the rule has no longer"


def test_two_sweeps_at_once_raise_one_alert(installation, settings, database, rule, time_machine):
    rule(kind="absence", days=1)
    families = [installation.add_family(f"family{number}") for number in range(5)]
    time_machine(timedelta(days=2))
    together(3, lambda: Sweeper(settings, database, publish=None).watch())
    assert [alert.state for alert in alerts(database)] == ["open"] * 5
    for family in families:
        judge(database, family, "v1")
    together(3, lambda: Sweeper(settings, database, publish=None).watch())
    assert [alert.state for alert in alerts(database)] == ["resolved"] * 5
    with database.read() as session:
        types = [event.type for event in session.scalars(select(Event).order_by(Event.created_at))]
    assert types == ["alert.raised"] * 5 + ["alert.resolved"] * 5


def together(count, work):
    """Do it in so many threads at once; the first error of one is raised."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work) for _ in range(count)]:
            done.result()
