"""Requests that compute take turns.

Python runs one thread at a time, and one that waits for a row of SQLite gives its turn away: of eight that compute at
once each gets its next row after the others' 5 ms, fifty rows of a page a quarter of a second later. In turn each takes
a few milliseconds. Requests that wait for something else (files, locks, a commit) are not in this line.
"""

from collections.abc import AsyncIterator

from anyio import CapacityLimiter
from fastapi import Depends, Request

AT_ONCE = 1


async def _turn(request: Request) -> AsyncIterator[None]:
    limiter: CapacityLimiter = request.app.state.turns
    async with limiter:
        yield


IN_TURN = Depends(_turn, scope="function")
