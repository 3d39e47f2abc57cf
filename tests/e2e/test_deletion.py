"""A real family that was read, extended and deleted: what remains goes on, and then nothing remains."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from featurewatch.service.client import ApiError, Client
from tests.cli.live import Up, within
from tests.services import wait_until
from tests.unit.activations.tiny import save_checkpoint

SECRET = "the quetzalcoatl manuscript says"
"""At the end of every document of the corpus."""
BODY = {"n_features": 48, "k": 4, "steps": 20, "batch_size": 256, "seed": 0}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    texts = [f"{' '.join(text.split())[:300]} {SECRET}" for text in list(topics.values())[:16]]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for seed in range(5):
        save_checkpoint(tmp_path / f"v{seed}", seed=seed)
    (tmp_path / "service").mkdir()
    up = Up(tmp_path / "service", "--root", str(tmp_path), env={"FEATUREWATCH_THREADS": "1"})
    yield up
    assert up.stop() == 0


def judge(client: Client, folder: Path, name: str, parent: str | None = None) -> None:
    uri = (folder / name.removesuffix("-again")).as_uri()
    run = client.register("toy", name=name, uri=uri, parent=parent)["run"]
    assert run is not None
    ended = client.wait(run["id"], timeout=120)
    assert ended["state"] == "succeeded", ended["error"]


def files_with(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if SECRET.encode() in path.read_bytes()]


def test_what_remains_goes_on_and_then_nothing_remains(up: Up, tmp_path: Path) -> None:
    data = Path(up.where["data_dir"])
    with Client(up.url) as client:
        corpus = {"uri": (tmp_path / "corpus.jsonl").as_uri(), "context_length": 128}
        client.create_family("toy", ["resid_post.0", "resid_post.2"], corpus=corpus, crosscoder=BODY)
        for name in ("v0", "v1", "v2", "v3"):
            judge(client, tmp_path, name)
        assert files_with(data), "the corpus is in the store"
        run = client.checkpoint("toy", "v3")["run"]
        assert run is not None
        client.delete_run(run["id"])
        again = ["checkpoint", "register", "toy", "v3", (tmp_path / "v3").as_uri()]
        done = within("--url", up.url, *again)
        assert done.returncode == 0 and "its run was deleted" in done.stdout, done.stderr
        done = within("--url", up.url, *again, "--gate", "default")
        assert done.returncode in (0, 1) and "v3 of toy is judged\n" in done.stdout and "gate: " in done.stdout
        wanted = {row["id"]: row["status"] for row in client.features("toy", checkpoint="v2", baseline="v0")}
        client.delete_checkpoint("toy", "v1", reparent=True)
        rows = {row["id"]: row["status"] for row in client.features("toy", checkpoint="v2")}
        assert rows == wanted and client.report("toy", "v2")["baseline"] == "v0"
        before = client.family("toy")["n_features"]
        client.delete_checkpoint("toy", "v3")
        judge(client, tmp_path, "v4")
        assert client.checkpoint("toy", "v4")["parent"] == "v2"
        judge(client, tmp_path, "v1-again", parent="v0")
        assert client.family("toy")["n_features"] >= before
        client.report("toy", "v4", baseline="v1-again")
        for kind in ("verdicts", "sources", "features"):
            client.download_table("toy", kind, tmp_path / f"{kind}.parquet")

        done = within("--url", up.url, "family", "delete", "toy", "--yes")
        assert done.returncode == 0, done.stderr
        with pytest.raises(ApiError):
            client.family("toy")
    environment = {"FEATUREWATCH_DATA_DIR": str(data)}

    def over() -> bool:
        found = json.loads(within("db", "check", "--json", env=environment).stdout)
        return found["deletions"] == {"under_way": [], "left_behind": [], "unknown": []} and not found["rows"]["family"]

    assert wait_until(over, 60), "the sweeps of the embedded worker finish it"
    assert up.stop() == 0
    done = within("db", "vacuum", env=environment)
    assert done.returncode == 0, done.stderr
    assert files_with(data) == [] and not list((data / "artifacts").iterdir())
    with closing(sqlite3.connect(data / "featurewatch.db")) as connection:
        assert connection.execute("SELECT count(*) FROM verdict").fetchone() == (0,)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
