"""SHA-256 of files: streamed, several files in parallel, and cached for as long as a file is unchanged."""

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
MAX_DIGESTS = 20_000
MAX_FINISHED = 20
"""Results of background threads that are kept until somebody asks for them."""
SETTLED_NS = 2_000_000_000
"""A file that changed this recently may change again with the same time: some file systems count in seconds."""
POLL_SECONDS = 0.1
BACKGROUND = threading.Semaphore(2)

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the total. An exception stops the reading."""


class FileState(NamedTuple):
    """Changes whenever the content of a file does: its size in bytes, and the times of its content and inode (ns)."""

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The current state of a file; symbolic links are followed. OSError if it cannot be read."""
        return cls.from_stat(path.stat())

    @classmethod
    def from_stat(cls, stat: os.stat_result) -> "FileState":
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class ChangedWhileReadError(OSError):
    """A file changed while its digest was computed; `filename` is its path."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.name} changed while it was read")
        self.filename = str(path)


_Key = tuple[int, int, FileState]
_memory: LRUCache[_Key, str] = LRUCache(MAX_DIGESTS)
_lock = threading.Lock()


def sha256(path: Path) -> str:
    """Hex digest of a file. ChangedWhileReadError if it is written to meanwhile."""
    return sha256_all([path])[0]


def sha256_all(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """Hex digests of files, in order. Unchanged files that were hashed before are not read again."""
    digests = [_recall(path) for path in paths]
    missing = [path for path, digest in zip(paths, digests, strict=True) if digest is None]
    if not missing:
        return [digest for digest in digests if digest is not None]
    reading = _Reading(sum(path.stat().st_size for path in missing))
    fresh = iter(reading.all(missing, progress))
    return [digest if digest is not None else next(fresh) for digest in digests]


def sha256_within(paths: Sequence[Path], seconds: float) -> list[str] | None:
    """As `sha256_all`, but None after `seconds`: the work continues in the background; call again for its result."""
    key = tuple(_key(path.stat()) for path in paths)
    with _lock:
        thread = _background.get(key)
        if thread is None:
            for finished in [other for other, last in _background.items() if not last.is_alive()][MAX_FINISHED:]:
                del _background[finished]  # nobody has asked for it
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
    """Cache the digest of a file that this process has just written and nobody else can have changed."""
    _store(_key(path.stat()), digest)


class _Background(threading.Thread):
    """Hashes files in the background, two sets at a time. Callers that ask for the same files share a thread."""

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
    """Reads files in parallel and counts the bytes."""

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
        # Only the inode's time: users can set that of the content, even to a future date.
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
