"""More requests at once than there are threads: those that write wait without one, so all of them are answered."""

from concurrent.futures import ThreadPoolExecutor

from anyio.to_thread import current_default_thread_limiter
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Checkpoint, Run

FAMILY = {"name": "smol", "hook_points": ["resid_post.1"]}


def test_more_registrations_at_once_than_threads(client: TestClient, database: Database) -> None:
    async def threads() -> float:
        return current_default_thread_limiter().total_tokens

    assert client.portal is not None
    at_once = 2 * int(client.portal.call(threads))
    client.post("/v1/families", json=FAMILY)

    def send(number: int):
        return client.post("/v1/families/smol/checkpoints", json={"name": f"v{number}", "uri": f"hf://org/m@{number}"})

    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(send, range(at_once)))
    assert {answer.status_code for answer in answers} == {202}
    with database.read() as session:
        assert session.scalar(select(func.count(func.distinct(Checkpoint.name)))) == at_once
        assert set(session.scalars(select(Run.id))) == {answer.json()["run"]["id"] for answer in answers}
