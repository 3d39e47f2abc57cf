"""Alert rules against verdicts: what fires, once, what is resolved, and who is told."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from featurewatch.service.alerts import evaluation, raising
from featurewatch.service.kit import clock
from featurewatch.service.models import Checkpoint, Event, Family
from tests import factories


@pytest.fixture
def lineage(database):
    """A family of checkpoints v1 -> v2 -> v3 with features 0 to 5 (0 watched, 1 tagged deception), all present."""
    with database.write() as session:
        family = factories.family(session)
        parent = None
        for name in ("v1", "v2", "v3"):
            parent = factories.checkpoint(session, family, name, parent=parent)
            for number in range(6):
                if name == "v1":
                    marks = {"watched": number == 0, "tags": ["deception"] if number == 1 else []}
                    factories.feature(session, family, number, parent, **marks)
                feature = session.get_one(factories.Feature, (family.id, number))
                factories.verdict(session, parent, feature, previous_status=None if name == "v1" else "present")


def judge(database, name, **statuses):
    """Write statuses (`F1="suppressed"`, or a pair with the previous one) into a checkpoint and evaluate the rules."""
    with database.write() as session:
        family = session.scalars(select(Family).where(Family.name == "smol")).one()
        checkpoint = session.scalars(select(Checkpoint).where(Checkpoint.name == name)).one()
        for feature, value in statuses.items():
            row = session.get_one(factories.Verdict, (checkpoint.id, int(feature[1:])))
            row.status, row.previous_status = value if isinstance(value, tuple) else (value, "present")
            row.change = 1.0 + row.feature if row.status != "present" else 0.0
        return [alert.summary for alert in evaluation.judged(session, family=family, checkpoint=checkpoint)]


def rule(client, condition, **more):
    answer = client.post("/v1/alert-rules", json={"name": "r", "condition": condition} | more)
    assert answer.status_code == 201, answer.text
    return answer.json()


def alerts(client, query=""):
    return client.get(f"/v1/alerts?{query}").json()["data"]


def events(database):
    with database.read() as session:
        return [(event.type, event.data) for event in session.scalars(select(Event).order_by(Event.created_at))]


@pytest.mark.parametrize(
    ("condition", "features"),
    [
        ({"kind": "feature", "feature": "F2"}, ["F2"]),
        ({"kind": "feature", "feature": "f3", "statuses": ["suppressed"]}, []),
        ({"kind": "watched"}, ["F0"]),
        ({"kind": "tag", "tag": "deception"}, ["F1"]),
        ({"kind": "tag", "tag": "sycophancy"}, []),
        ({"kind": "status_count", "status": "suppressed", "at_least": 3}, ["F2", "F1", "F0"]),
        ({"kind": "status_count", "status": "suppressed", "at_least": 4}, []),
        ({"kind": "status_count", "status": "emerged", "at_least": 1}, ["F4"]),
    ],
)
def test_conditions(client, database, lineage, condition, features):
    rule(client, condition, family="smol")
    judge(
        database,
        "v2",
        F0="suppressed",
        F1="suppressed",
        F2="suppressed",
        F3="absent",
        F4=("emerged", None),
        F5=("suppressed", "suppressed"),
    )
    found = [row["feature"] for alert in alerts(client) for row in alert["evidence"]]
    assert found == features
    assert [kind for kind, _ in events(database)] == (["alert.raised"] if features else [])


def test_an_alert_is_raised_once_and_told_with_its_evidence(client, database, lineage):
    made = rule(client, {"kind": "watched"})
    assert judge(database, "v2", F0="suppressed") == ["v2: F0 suppressed"]
    assert judge(database, "v2") == [], "judged again: nothing new"
    assert judge(database, "v3", F0=("suppressed", "suppressed")) == [], "still suppressed: no transition"
    (alert,) = alerts(client, "family=smol&checkpoint=v2&state=open")
    assert (alert["rule"], alert["rule_name"], alert["state"]) == (made["id"], "r", "open")
    assert alert["evidence"][0]["projection_ratio"] == 1.0
    assert alert["evidence"][0]["previous_status"] == "present"
    ((kind, data),) = events(database)
    assert (kind, data["alert"]["id"], data["alert"]["checkpoint"]) == ("alert.raised", alert["id"], "v2")


def test_a_feature_that_comes_back_resolves_the_alert_of_its_ancestor(client, database, lineage):
    rule(client, {"kind": "watched"})
    judge(database, "v2", F0="suppressed")
    judge(database, "v3", F0=("indeterminate", "suppressed"))
    assert alerts(client)[0]["state"] == "open", "not to be able to say is not to have come back"
    judge(database, "v3", F0=("present", "suppressed"))
    assert alerts(client)[0]["state"] == "resolved"
    kind, data = events(database)[-1]
    assert (kind, data["alert"]["checkpoint"], data["resolved_by"]) == ("alert.resolved", "v2", "v3")
    again = client.post(f"/v1/alerts/{data['alert']['id']}/ack")
    assert (again.status_code, again.json()["code"]) == (409, "alert-resolved")


def test_a_checkpoint_that_is_judged_anew_resolves_and_raises_again(client, database, lineage):
    rule(client, {"kind": "watched"})
    judge(database, "v2", F0="suppressed")
    judge(database, "v2", F0="present")
    assert [alert["state"] for alert in alerts(client)] == ["resolved"]
    assert judge(database, "v2", F0="absent") == ["v2: F0 absent"]
    assert [alert["state"] for alert in alerts(client)] == ["open"]
    assert [kind for kind, _ in events(database)] == ["alert.raised", "alert.resolved", "alert.raised"]


def test_the_first_checkpoint_of_a_lineage_has_changed_from_nothing(client, database, lineage):
    rule(client, {"kind": "status_count", "status": "absent", "at_least": 1})
    assert judge(database, "v1", F0=("absent", None)) == []


def test_disabled_rules_and_those_of_other_families_are_silent(client, database, lineage):
    with database.write() as session:
        factories.family(session, "other")
    rule(client, {"kind": "watched"}, family="other")
    off = rule(client, {"kind": "watched"})
    client.patch(f"/v1/alert-rules/{off['id']}", json={"enabled": False})
    assert judge(database, "v2", F0="suppressed") == []


def test_ack_and_mute(client, database, lineage):
    rule(client, {"kind": "watched"})
    judge(database, "v2", F0="suppressed")
    url = f"/v1/alerts/{alerts(client)[0]['id']}"
    assert client.post(f"{url}/ack").json()["state"] == "acknowledged"
    muted = client.post(f"{url}/mute", json={"hours": 2}).json()
    assert muted["state"] == "muted"
    assert muted["muted_until"] is not None
    assert judge(database, "v3", F0=("absent", "suppressed")) == ["v3: F0 absent"]
    assert [alert["state"] for alert in alerts(client)] == ["muted", "muted"]
    assert len(events(database)) == 1, "muted: kept, and nobody is told"
    with database.write() as session:
        raising.unmute(session, clock.utcnow() + timedelta(hours=3))
    assert {alert["state"] for alert in alerts(client)} == {"open"}
    assert [kind for kind, _ in events(database)] == ["alert.raised"] * 3, "they still hold: told again"
    assert client.post(f"{url}/mute").json()["muted_until"] is None
    again = client.post(f"{url}/reopen").json()
    assert (again["state"], again["muted_until"]) == ("open", None)
    for body in ({"hours": 1, "until": "2100-01-01T00:00:00Z"}, {"until": "2100-01-01T00:00:00"}, {"hours": 0}):
        assert client.post(f"{url}/mute", json=body).status_code == 422
    assert client.post(f"{url}/mute", json={"until": "2001-01-01T00:00:00Z"}).status_code == 409


def measure(database, name, fvu):
    """Judge a checkpoint with another FVU."""
    with database.write() as session:
        session.scalars(select(Checkpoint).where(Checkpoint.name == name)).one().quality = {"fvu": fvu}
    return judge(database, name)


def test_quality_against_a_bound_is_one_alert_along_a_lineage(client, database, lineage):
    rule(client, {"kind": "quality", "max_fvu": 0.35})
    assert measure(database, "v1", 0.3) == []
    assert measure(database, "v2", 0.5) == ["v2: FVU 0.5 exceeds the limit of 0.35"]
    assert measure(database, "v2", 0.5) == [], "judged again: nothing new"
    assert measure(database, "v3", 0.6) == [], "goes on"
    (alert,) = alerts(client, "kind=quality&checkpoint=v2&state=open")
    assert alert["evidence"] == [{"fvu": 0.5, "limit": 0.35, "parent_fvu": 0.3}]
    assert alerts(client, "kind=watched") == []
    assert measure(database, "v3", 0.35) == []
    assert [alert["state"] for alert in alerts(client)] == ["resolved"]
    assert [kind for kind, _ in events(database)] == ["alert.raised", "alert.resolved"]
    assert events(database)[-1][1]["resolved_by"] == "v3"


def test_quality_against_the_parent_is_raised_where_it_falls_again(client, database, lineage):
    rule(client, {"kind": "quality", "max_fvu_ratio": 1.5})
    assert measure(database, "v1", 0.9) == [], "nothing to compare with"
    measure(database, "v1", 0.2)
    assert measure(database, "v2", 0.4) == ["v2: FVU 0.4 exceeds the limit of 0.3"]
    assert measure(database, "v3", 0.5) == [], "not over 1.5 times v2's, and v2's alert stays"
    assert measure(database, "v3", 0.7) == ["v3: FVU 0.7 exceeds the limit of 0.6"]
    assert {alert["state"] for alert in alerts(client)} == {"open"}
    measure(database, "v3", 0.3)
    assert {alert["state"] for alert in alerts(client)} == {"resolved"}
    assert measure(database, "v3", None) == []


def test_somebody_says_that_it_is_over(client, database, lineage):
    rule(client, {"kind": "watched"})
    judge(database, "v2", F0="suppressed")
    url = f"/v1/alerts/{alerts(client)[0]['id']}"
    assert client.post(f"{url}/resolve").json()["state"] == "resolved"
    kind, data = events(database)[-1]
    assert (kind, data["resolved_by"]) == ("alert.resolved", None)
    again = client.post(f"{url}/resolve")
    assert (again.status_code, again.json()["code"]) == (409, "alert-resolved")
    assert judge(database, "v3", F0=("absent", "suppressed")) == ["v3: F0 absent"]


def test_a_rule_that_becomes_one_of_another_kind_resolves_its_alerts(client, database, lineage):
    made = rule(client, {"kind": "quality", "max_fvu": 0.35})
    measure(database, "v2", 0.5)
    client.patch(f"/v1/alert-rules/{made['id']}", json={"condition": {"kind": "watched"}})
    assert [alert["state"] for alert in alerts(client)] == ["resolved"]
    assert judge(database, "v2", F0="suppressed") == ["v2: F0 suppressed"]
    assert [(alert["kind"], alert["state"]) for alert in alerts(client)] == [
        ("watched", "open"),
        ("quality", "resolved"),
    ]


def test_rules_are_made_changed_and_removed(client, database, lineage):
    made = rule(client, {"kind": "feature", "feature": "f5"}, family="smol")
    assert made["condition"]["feature"] == "F5"
    assert made["condition"]["statuses"] == ["suppressed", "absent", "replaced", "relocated", "amplified"]
    url = f"/v1/alert-rules/{made['id']}"
    changed = client.patch(url, json={"name": "n", "condition": {"kind": "watched", "statuses": ["absent"]}}).json()
    assert (changed["name"], changed["condition"]) == ("n", {"kind": "watched", "statuses": ["absent"]})
    assert client.get(url).json() == changed
    judge(database, "v2", F0="absent")
    assert client.delete(url).status_code == 204
    assert (alerts(client), client.get("/v1/alert-rules").json()["data"]) == ([], [])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "r", "condition": {"kind": "moon"}}, 422),
        ({"name": "r", "condition": {"kind": "feature", "feature": "seven"}}, 422),
        ({"name": "r", "condition": {"kind": "watched", "statuses": []}}, 422),
        ({"name": "r", "condition": {"kind": "status_count", "status": "gone", "at_least": 1}}, 422),
        ({"name": "r", "condition": {"kind": "quality"}}, 422),
        ({"name": "r", "condition": {"kind": "quality", "max_fvu_ratio": 1}}, 422),
        ({"name": "r", "condition": {"kind": "run_failed", "at_least": 0}}, 422),
        ({"name": "r", "condition": {"kind": "run_failed", "runs": ["\0"]}}, 422),
        ({"name": "r", "condition": {"kind": "absence"}}, 422),
        ({"name": "r", "condition": {"kind": "absence", "days": 1e9}}, 422),
        ({"name": "r", "condition": {"kind": "watched"}, "family": "nobody"}, 404),
        ({"name": "r", "condition": {"kind": "rewired", "feature": "F999"}, "family": "smol"}, 404),
    ],
)
def test_what_is_no_rule(client, lineage, body, status):
    assert client.post("/v1/alert-rules", json=body).status_code == status


def test_a_limit_without_end_is_none(client):
    body = '{"name": "r", "condition": {"kind": "quality", "max_fvu": 1e999}}'
    answer = client.post("/v1/alert-rules", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert client.get("/v1/alerts?kind=moon").status_code == 422


def place(database, name, **places):
    """Write places (`F1="broadened"`) into a checkpoint, and `same` for the other features, and evaluate the rules."""
    with database.write() as session:
        family = session.scalars(select(Family).where(Family.name == "smol")).one()
        checkpoint = session.scalars(select(Checkpoint).where(Checkpoint.name == name)).one()
        for number in range(6):
            row = session.get_one(factories.Verdict, (checkpoint.id, number))
            row.places = places.get(f"F{number}", "same")
            row.gained_share, row.gained_share_lo, row.gained_share_hi = 0.5 + number / 10, 0.5, 1.5
            row.lost_share, row.firing_rate_ratio = 0.01, 1.9
        return [alert.summary for alert in evaluation.judged(session, family=family, checkpoint=checkpoint)]


@pytest.mark.parametrize(
    ("condition", "raised"),
    [
        ({}, ["v2: F0 broadened"]),
        ({"places": ["narrowed", "indeterminate"]}, []),
        ({"tag": "deception"}, ["v2: tag deception: F1 displaced"]),
        ({"tag": "sycophancy"}, []),
        ({"feature": "f2"}, ["v2: F2 narrowed"]),
        ({"feature": "F2", "places": ["broadened"]}, []),
        ({"feature": "F3"}, []),
        ({"feature": "F4", "places": ["indeterminate"]}, ["v2: F4 indeterminate"]),
    ],
)
def test_a_rule_on_places(client, database, lineage, condition, raised):
    rule(client, {"kind": "places"} | condition, family="smol")
    changed = {"F0": "broadened", "F1": "displaced", "F2": "narrowed", "F4": "indeterminate"}
    assert place(database, "v1", **changed) == [], "the first of its lineage has changed from nothing"
    place(database, "v1")
    assert place(database, "v2", **changed) == raised
    assert place(database, "v2", **changed) == [], "judged again: nothing new"


def test_an_alert_on_places_has_its_evidence_and_ends_where_they_stay_the_same(client, database, lineage):
    made = rule(client, {"kind": "places"})
    assert made["condition"] == {
        "kind": "places", "feature": None, "tag": None, "places": ["displaced", "broadened", "narrowed"],
    }  # fmt: skip
    place(database, "v1")
    place(database, "v2", F0="broadened", F1="broadened")
    (alert,) = alerts(client, "kind=places")
    (row,) = alert["evidence"]
    assert (row["feature"], row["places"], row["previous_places"]) == ("F0", "broadened", "same")
    assert (row["gained_share"], row["gained_share_ci"], row["lost_share"]) == (0.5, [0.5, 1.5], 0.01)
    assert (row["firing_rate_ratio"], row["firing_rate_ratio_ci"]) == (1.9, None)
    for word in ("broadened", "narrowed", "indeterminate", None):
        assert place(database, "v3", F0=word) == [], "its places had changed already"
        assert alerts(client)[0]["state"] == "open"
    assert place(database, "v3") == []
    assert alerts(client)[0]["state"] == "resolved"
    kind, data = events(database)[-1]
    assert (kind, data["alert"]["checkpoint"], data["resolved_by"]) == ("alert.resolved", "v2", "v3")


def test_features_with_the_largest_gain_come_first(client, database, lineage):
    rule(client, {"kind": "places", "tag": "all"})
    for number in range(6):
        client.patch(f"/v1/families/smol/features/F{number}", json={"tags": ["all"]})
    place(database, "v1")
    changed = {f"F{number}": "broadened" for number in range(5)}
    assert place(database, "v2", **changed) == ["v2: tag all: F4 broadened, F3 broadened, F2 broadened and 2 more"]


def test_a_places_rule_has_one_group_of_features(client, lineage):
    for condition in ({"feature": "F1", "tag": "deception"}, {"places": []}, {"places": ["absent"]}):
        answer = client.post("/v1/alert-rules", json={"name": "r", "condition": {"kind": "places"} | condition})
        assert answer.status_code == 422
    answer = client.post(
        "/v1/alert-rules", json={"name": "r", "family": "smol", "condition": {"kind": "places", "feature": "F99"}}
    )
    assert answer.status_code == 404
