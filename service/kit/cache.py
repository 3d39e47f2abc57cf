"""A size-bounded cache for expensive results."""

import threading
from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from cachetools import LRUCache


class Sized(Protocol):
    """A value that knows its size in bytes."""

    @property
    def nbytes(self) -> int: ...


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


class SizedCache(Generic[Value]):
    """Up to `max_bytes` of values, shared by all threads of a process; the least recently used are dropped first.

    A key must always mean the same value: include a revision in the key of anything that can change.
    """

    def __init__(self, max_bytes: int) -> None:
        self._values: LRUCache[Hashable, Value] = LRUCache(max_bytes, getsizeof=lambda value: value.nbytes)
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of a key, computed if it is missing. Two threads that ask at once may both compute it."""
        return self.get_all([key], lambda _: {key: compute()})[key]

    def get_all(self, keys: Collection[Key], compute: Callable[[list[Key]], Mapping[Key, Value]]) -> dict[Key, Value]:
        """The values of several keys. `compute` is called once with all missing keys."""
        with self._lock:
            values = {key: self._values[key] for key in keys if key in self._values}
        missing = [key for key in keys if key not in values]
        computed = compute(missing) if missing else {}
        with self._lock:
            for key in missing:
                values[key] = computed[key]
                with suppress(ValueError):  # larger than the whole cache
                    self._values.setdefault(key, computed[key])
        return values
