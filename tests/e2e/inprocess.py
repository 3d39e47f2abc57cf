"""The API and a worker in one process, with a family of tiny models: for tests that change things under their feet."""

import json
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.config import Settings
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Checkpoint, Verdict
from featurewatch.service.store.ledger import open_store
from featurewatch.workers import runner
from tests.e2e.parts import HOOK_POINT as HOOK
from tests.e2e.parts import OPTIONS
from tests.unit.activations.tiny import save_checkpoint

TEXTS = [f"The quick brown fox number {n} jumps over the lazy dog, and says so {n % 7} times." for n in range(60)]


class Installation:
    """The API and a worker in this process, on one database, with a family that has one judged checkpoint."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.settings = Settings(
            data_dir=folder / "data",
            database_url=database_url,
            roots=str(folder),
            stores="hf://,memory://",
            require_keys=False,
            log_level="ERROR",
            threads=1,
        )
        self.database = Database(database_url)
        self.artifacts = open_store(self.settings, self.database)
        self.client = TestClient(create_app(self.settings), base_url="http://localhost")
        self.corpus = folder / "corpus.jsonl"
        self.corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        self.numbers = iter(range(1000))

    def begin(self) -> None:
        """The family, and its first checkpoint."""
        self.family = self.make_family("smol")
        self.model = save_checkpoint(self.folder / "v1")
        assert self.judge("v1", self.model.as_uri())["state"] == "succeeded"

    def make_family(self, name: str) -> str:
        body = {"name": name, "hook_points": [HOOK], "corpus": {"uri": self.corpus.as_uri()}, "crosscoder": OPTIONS}
        assert self.client.post("/v1/families", json=body).status_code == 201
        return name

    def post(self, name: str, uri: str, family: str | None = None, **more: Any) -> Any:
        url = f"/v1/families/{family or self.family}/checkpoints"
        return self.client.post(url, json={"name": name, "uri": uri} | more)

    def register(self, name: str, uri: str, **more: Any) -> str:
        response = self.post(name, uri, **more)
        assert response.status_code == 202, response.text
        return str(response.json()["run"]["id"])

    def work(self, run_id: str) -> dict[str, Any]:
        """Do the run that is queued; how it ended."""
        fresh = open_store(self.settings, self.database)  # as a worker that has just been started
        assert runner.run_next(settings=self.settings, database=self.database, artifacts=fresh) == run_id
        return self.client.get(f"/v1/runs/{run_id}").json()

    def judge(self, name: str, uri: str, **more: Any) -> dict[str, Any]:
        return self.work(self.register(name, uri, **more))

    def retry(self, run_id: str) -> dict[str, Any]:
        assert self.client.post(f"/v1/runs/{run_id}/retry").is_success
        return self.work(run_id)

    def checkpoint(self, name: str, family: str | None = None) -> dict[str, Any]:
        return self.client.get(f"/v1/families/{family or self.family}/checkpoints/{name}").json()

    def fresh_model(self, seed: int = 1) -> tuple[str, Path]:
        """A new name, and a model in a folder of its own."""
        name = f"c{next(self.numbers)}"
        return name, save_checkpoint(self.folder / name, seed=seed)

    def verdicts(self, name: str) -> int:
        with self.database.read() as session:
            found = session.query(Verdict).join(Checkpoint, Checkpoint.id == Verdict.checkpoint_id)
            return found.filter(Checkpoint.name == name).count()

    def row(self, table: Any, **where: Any) -> Any:
        with self.database.read() as session:
            return session.query(table).filter_by(**where).first()


def failed_by(run: dict[str, Any], code: str, *words: str) -> None:
    assert run["state"] == "failed", run
    assert run["error"]["code"] == code, run["error"]
    for word in words:
        assert word in run["error"]["detail"], run["error"]["detail"]
