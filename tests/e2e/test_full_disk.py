"""The disk is full in the middle of a fit: the run ends and says so, nothing half written stays, a retry goes on."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.planted_data import make_lineage
from featurewatch.service.models import Event
from tests.e2e.parts import HOOK_POINT, WAIT_SECONDS, Service, Worker, rows_of, unfinished, write_lineage
from tests.e2e.test_kill import OPTIONS, SETTINGS, SHAPE
from tests.services import wait_until


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 MB at a new folder. Only root may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"this test needs a small disk, and nobody but root can mount one: {done.stderr}"
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):  # to the last page
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_a_full_disk_ends_the_run_and_a_retry_goes_on(module_database: tuple[Path, str]) -> None:
    folder, url = module_database
    uris = write_lineage(make_lineage(0, **SHAPE), folder / "releases")
    with small_disk(folder / "disk") as disk:
        if url.startswith("sqlite"):  # an embedded installation has its database there too
            shutil.move(folder / "featurewatch.db", disk)
            url = f"sqlite:///{disk}/featurewatch.db"
        settings = SETTINGS | {"data_dir": disk / "data"}
        with (
            Service(folder, url, worker=False, **settings) as service,
            Worker(folder, url, 0, "--pipelines", "tests.e2e.dying:FIT", **settings) as worker,
        ):
            client = service.client
            client.create_family("small", [HOOK_POINT], crosscoder=OPTIONS)
            run = client.register("small", name="v1", uri=uris[0])["run"]
            assert wait_until(worker.stands_still, WAIT_SECONDS), worker.log()
            fill(disk / "ballast")
            worker.go_on()
            # Not a missed beat of an embedded installation, whose database is full too: the fit's own save.
            assert wait_until(lambda: bool(worker.lines("failed")), WAIT_SECONDS), worker.log()[-3000:]
            (disk / "ballast").unlink()
            ended = client.wait(run["id"], timeout=WAIT_SECONDS, interval=0.05)
            assert (ended["state"], (ended["error"] or {}).get("code")) == ("failed", "disk-full")
            client.retry(run["id"])
            ended = client.wait(run["id"], timeout=WAIT_SECONDS, interval=0.05)
            assert ended["state"] == "succeeded", f"{ended['error']}\n{worker.log()[-3000:]}"
            assert [line["steps"] for line in worker.lines("resuming the fit")] == [OPTIONS["steps"]]
            assert sorted(row["type"] for row in rows_of(url, Event)) == ["checkpoint.judged", "run.failed"]
            assert unfinished(disk / "data") == []
