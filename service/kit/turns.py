"""Who goes next: requests that compute take turns, and so do those that write.

Python runs one thread at a time, and one that waits for a row of SQLite gives its turn away: of eight that compute at
once each gets its next row after the others' 5 ms, fifty rows of a page a quarter of a second later. In turn each takes
a few milliseconds.

A request that writes waits here before it takes a thread or a connection. Were the threads held by those that wait for
the database's write lock, the one that has it could not get one to commit in.
"""

from collections.abc import AsyncIterator

from anyio import CapacityLimiter
from fastapi import Depends, Request

COMPUTE_AT_ONCE = 1
WRITE_AT_ONCE = 8
"""On Postgres, out of its pool of connections. SQLite has one writer."""


class Turns:
    """The two lines of a process."""

    def __init__(self, *, one_writer: bool) -> None:
        self.computing = CapacityLimiter(COMPUTE_AT_ONCE)
        self.writing = CapacityLimiter(1 if one_writer else WRITE_AT_ONCE)


class WriteTurn:
    """The turn of one request to write: taken once, at its first use, and given back at its end."""

    def __init__(self, turns: Turns) -> None:
        self._limiter, self._taken = turns.writing, False

    async def take(self) -> None:
        """Wait for the turn, where the request has it not yet."""
        if not self._taken:
            await self._limiter.acquire_on_behalf_of(self)
            self._taken = True

    def give_back(self) -> None:
        """Let the next one write."""
        if self._taken:
            self._limiter.release_on_behalf_of(self)
            self._taken = False


async def _compute(request: Request) -> AsyncIterator[None]:
    turns: Turns = request.app.state.turns
    async with turns.computing:
        yield


IN_TURN = Depends(_compute, scope="function")
