"""Digests of files: right, remembered while a file stays as it is, and never taken from one that is being written."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from featurewatch.service.kit import digests
from featurewatch.service.kit.digests import ChangedWhileReadError, sha256, sha256_all, sha256_within


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"file{n}" for n in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(os.urandom(number * 700_000))
    return paths


def expected(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_every_byte_counts(files: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    assert sha256_all(files, lambda done, total: told.append((done, total))) == expected(files)
    assert told[-1] == (7_000_000, 7_000_000)
    assert sha256_all([]) == []


def test_a_file_is_read_once_for_each_of_its_states(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under another name. One that was written a moment ago is not remembered: it may change within a tick."""
    reads: list[Path] = []
    read = digests._Reading.read

    def counted(self: digests._Reading, path: Path) -> str:
        reads.append(path)
        return read(self, path)

    monkeypatch.setattr(digests._Reading, "read", counted)
    assert [sha256(files[1]), sha256(files[1])] == expected(files[1:2]) * 2
    assert len(reads) == 2
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    link = files[1].with_name("link")
    os.link(files[1], link)
    reads.clear()
    assert {sha256(files[1]), sha256(link)} == set(expected(files[1:2]))
    assert len(reads) == 1
    stat = files[1].stat()
    files[1].write_bytes(os.urandom(stat.st_size))
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256(files[1]) == expected(files[1:2])[0], "size and time are as they were"


def test_a_file_that_is_written_to_meanwhile(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        """A digest during which somebody writes."""

        def update(self, _data: object) -> None:
            with files[4].open("ab") as file:
                file.truncate(10)

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr(digests.hashlib, "sha256", Writer)
    with pytest.raises(ChangedWhileReadError, match="file4"):
        sha256(files[4])


def test_whoever_tells_of_progress_may_stop_it(files: list[Path]) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sha256_all(files, stop)


def test_in_the_background_it_goes_on_and_is_shared(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    going, reads = threading.Event(), 0
    read = digests._Reading.read

    def slow(self: digests._Reading, path: Path) -> str:
        nonlocal reads
        reads += 1
        going.wait(60)
        return read(self, path)

    monkeypatch.setattr(digests._Reading, "read", slow)
    assert sha256_within(files[2:3], 0.01) is None
    assert sha256_within(files[2:3], 0.01) is None
    going.set()
    assert sha256_within(files[2:3], 60) == expected(files[2:3])
    assert reads == 1


def test_an_error_in_the_background_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")

    def broken(_self: digests._Reading, _path: Path) -> str:
        raise OSError("the disk")

    monkeypatch.setattr(digests._Reading, "read", broken)
    with pytest.raises(OSError, match="the disk"):
        sha256_within([path], 60)
