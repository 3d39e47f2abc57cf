"""SHA-256 of files: streamed, several files at once, and remembered for as long as a file stays as it is."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from cachetools import LRUCache

CHUNK = 1 << 20
THREADS = 8
REMEMBERED = 20_000
REMEMBERED_ANSWERS = 20
SETTLED_NS = 2_000_000_000
"""A file that changed so short a time ago may change again without a new time: some file systems count in seconds."""
POLL_SECONDS = 0.1
BACKGROUND = threading.Semaphore(2)

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all; may raise, which ends the reading."""


class FileState(NamedTuple):
    """What a file's content cannot change without: size in bytes, times of its content and of its inode (ns)."""

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of a file now, links followed. OSError where it cannot be read."""
        return cls.from_stat(path.stat())

    @classmethod
    def from_stat(cls, stat: os.stat_result) -> "FileState":
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class ChangedWhileReadError(OSError):
    """A file was written to while its digest was computed; `filename` is its path."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.name} changed while it was read")
        self.filename = str(path)


_Key = tuple[int, int, FileState]
_memory: LRUCache[_Key, str] = LRUCache(REMEMBERED)
_lock = threading.Lock()


def sha256(path: Path) -> str:
    """Hex digest of a file. ChangedWhileReadError where somebody writes to it meanwhile."""
    return sha256_all([path])[0]


def sha256_all(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """Hex digests of files, in order. Files that were hashed before and have not changed since are not read again."""
    found = [_recall(path) for path in paths]
    missing = [path for path, digest in zip(paths, found, strict=True) if digest is None]
    if not missing:
        return [digest for digest in found if digest is not None]
    reading = _Reading(sum(path.stat().st_size for path in missing))
    fresh = iter(reading.all(missing, progress))
    return [digest if digest is not None else next(fresh) for digest in found]


def sha256_within(paths: Sequence[Path], seconds: float) -> list[str] | None:
    """As `sha256_all`, if it takes no longer than `seconds`. None: it goes on in the background; ask again later."""
    key = tuple(_key(path.stat()) for path in paths)
    with _lock:
        thread = _background.get(key)
        if thread is None:
            for done in [other for other, last in _background.items() if not last.is_alive()][REMEMBERED_ANSWERS:]:
                del _background[done]  # nobody came back for it
            thread = _background[key] = _Background(paths)
            thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return None
    with _lock:
        _background.pop(key, None)
    if thread.error is not None:
        raise thread.error
    return thread.digests


def remember(path: Path, digest: str) -> None:
    """Take a digest for known: of a file that this process has just written, and nobody else knows yet."""
    _store(_key(path.stat()), digest)


class _Background(threading.Thread):
    """Hashes files while nobody waits; those who ask for the same files share it. Two at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(name="digests", daemon=True)
        self.paths = paths
        self.digests: list[str] = []
        self.error: OSError | None = None

    def run(self) -> None:
        with BACKGROUND:
            try:
                self.digests = sha256_all(self.paths)
            except OSError as error:
                self.error = error


_background: dict[tuple[_Key, ...], _Background] = {}


class _Reading:
    """Files that are being read, with what is counted of them."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def all(self, paths: Sequence[Path], progress: Progress | None) -> list[str]:
        if len(paths) == 1 and progress is None:
            return [self.read(paths[0])]
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1, len(paths))) as pool:
            futures = [pool.submit(self.read, path) for path in paths]
            try:
                self._wait(futures, progress)
            except BaseException:
                self.stopped.set()
                raise
            return [future.result() for future in futures]

    def _wait(self, futures: Sequence[Future[str]], progress: Progress | None) -> None:
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, POLL_SECONDS if progress else None, FIRST_COMPLETED)
            for future in finished:
                future.result()
            if progress:
                progress(self.done, self.total)

    def read(self, path: Path) -> str:
        digest, buffer = hashlib.sha256(), bytearray(CHUNK)
        view = memoryview(buffer)
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while count := file.readinto(buffer):
                digest.update(view[:count])
                with self._lock:
                    self.done += count
                if self.stopped.is_set():
                    break
            after = os.fstat(file.fileno())
        if _key(before) != _key(after):
            raise ChangedWhileReadError(path)
        text = digest.hexdigest()
        # The time of the inode alone: that of the content can be set, to a day in the future too.
        if not self.stopped.is_set() and time.time_ns() - after.st_ctime_ns > SETTLED_NS:
            _store(_key(after), text)
        return text


def _key(stat: os.stat_result) -> _Key:
    return stat.st_dev, stat.st_ino, FileState.from_stat(stat)


def _recall(path: Path) -> str | None:
    key = _key(path.stat())
    with _lock:
        return _memory.get(key)


def _store(key: _Key, digest: str) -> None:
    with _lock:
        _memory[key] = digest
