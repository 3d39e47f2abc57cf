"""What is dear to make and asked for again: kept in memory, up to so many bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What knows how many bytes it takes."""

    @property
    def nbytes(self) -> int: ...


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


class Kept(Generic[Value]):
    """Values by key, for all threads of a process; those that were not asked for longest go first.

    A key must name one value for ever: what can change has something in its key that changes with it.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made where it is not there. Of two threads at once both may make it."""
        return self.get_all([key], lambda _: {key: make()})[key]

    def get_all(self, keys: Collection[Key], make: Callable[[list[Key]], Mapping[Key, Value]]) -> dict[Key, Value]:
        """The same of several keys: those that are not there are made together."""
        with self._lock:
            found = {key: self._values[key] for key in keys if key in self._values}
            for key in found:
                self._values.move_to_end(key)
        missing = [key for key in keys if key not in found]
        made = make(missing) if missing else {}
        with self._lock:
            for key in missing:
                found[key] = made[key]
                if key not in self._values:
                    self._values[key] = made[key]
                    self._bytes += made[key].nbytes
            while self._bytes > self.most_bytes:
                self._bytes -= self._values.popitem(last=False)[1].nbytes
        return found
