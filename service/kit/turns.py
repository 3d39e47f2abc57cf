"""Concurrency limits: requests that compute take turns, and so do requests that write.

Python runs one thread at a time, and a thread that waits for a row of SQLite loses the interpreter. If eight requests
compute at once, each gets its next row after the 5 ms slices of the others, so the fifty rows of a page take a quarter
of a second. In turn, each takes a few milliseconds.

A request that writes waits here before it takes a thread or a connection. If requests that wait for the database's
write lock held all threads, the request that has the lock could not get a thread to commit in.
"""

from collections.abc import AsyncIterator

from anyio import CapacityLimiter
from fastapi import Depends, Request

COMPUTE_AT_ONCE = 1
WRITE_AT_ONCE = 8
"""On Postgres; less than its connection pool. SQLite has a single writer."""


class Turns:
    """The two limits of a process."""

    def __init__(self, *, one_writer: bool) -> None:
        self.computing = CapacityLimiter(COMPUTE_AT_ONCE)
        self.writing = CapacityLimiter(1 if one_writer else WRITE_AT_ONCE)


class WriteTurn:
    """The turn of a request to write: taken at its first use, released at its end."""

    def __init__(self, turns: Turns) -> None:
        self._limiter, self._taken = turns.writing, False

    async def take(self) -> None:
        """Wait for the turn, unless the request already has it."""
        if not self._taken:
            await self._limiter.acquire_on_behalf_of(self)
            self._taken = True

    def give_back(self) -> None:
        """Let the next request write."""
        if self._taken:
            self._limiter.release_on_behalf_of(self)
            self._taken = False


async def _compute(request: Request) -> AsyncIterator[None]:
    turns: Turns = request.app.state.turns
    async with turns.computing:
        yield


IN_TURN = Depends(_compute, scope="function")
