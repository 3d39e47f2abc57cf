"""Requests at the same time: what is sent twice happens once, on either engine."""

from concurrent.futures import ThreadPoolExecutor

from fastapi.testclient import TestClient
from sqlalchemy import func, select

from featurewatch.service.kit.db import Database
from featurewatch.service.models import AuditEntry, Checkpoint, Family, Run

FAMILY = {"name": "smol", "hook_points": ["resid_post.1"]}
AT_ONCE = 6


def count(database: Database, table: type) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_one_idempotency_key_at_once(client: TestClient, database: Database) -> None:
    def send(_: int):
        return client.post("/v1/families", json=FAMILY, headers={"Idempotency-Key": "one"})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(send, range(AT_ONCE)))
    assert [answer.status_code for answer in answers] == [201] * AT_ONCE
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert count(database, Family) == count(database, AuditEntry) == 1


def test_one_registration_at_once_without_a_key(client: TestClient, database: Database) -> None:
    client.post("/v1/families", json=FAMILY)

    def send(_: int):
        return client.post("/v1/families/smol/checkpoints", json={"name": "v1", "uri": "hf://org/model"})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(send, range(AT_ONCE)))
    assert sorted(answer.status_code for answer in answers) == [200] * (AT_ONCE - 1) + [202]
    assert len({answer.json()["run"]["id"] for answer in answers}) == 1
    assert count(database, Checkpoint) == count(database, Run) == 1
