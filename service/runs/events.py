"""Progress of one run as server-sent events, read from the database: any API process can serve any run.

Own code: FastAPI's event streams may be stored by browsers and proxies (`no-cache` instead of `no-store`), and
sse-starlette would replace only the framing and the heartbeat.
"""

import time
from collections.abc import AsyncIterator

import anyio
from anyio.to_thread import run_sync
from sqlalchemy.exc import OperationalError
from starlette.responses import StreamingResponse

from featurewatch.service.auth import logic as auth
from featurewatch.service.auth.logic import Principal
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.problems import UnauthenticatedError
from featurewatch.service.runs import queries
from featurewatch.service.runs.schemas import RunView, view
from featurewatch.service.runs.states import FINAL

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 10.0
"""Proxies close a silent connection, often after 30 or 60 seconds."""
LONGEST_SECONDS = 900.0
"""Streams end after this time and clients reconnect, so no connection outlives a deploy by hours."""


def response(database: Database, run_id: str, caller: Principal) -> StreamingResponse:
    """A response that streams a run's progress to a caller."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(database, run_id, caller), media_type="text/event-stream", headers=headers)


async def stream(database: Database, run_id: str, principal: Principal) -> AsyncIterator[str]:
    """Yield a `progress` event with the whole run on every change, then `end` with its final state.

    The stream also ends when the caller's key or session does; both are checked on every poll.
    """
    began = spoke = time.monotonic()
    last = ""
    yield "retry: 2000\n\n"
    while time.monotonic() - began < LONGEST_SECONDS:
        try:
            current = await run_sync(_look, database, run_id, principal)
        except UnauthenticatedError:
            yield ": the key or the session has ended\n\n"
            return
        except OperationalError:  # the database is briefly unavailable: try again at the next poll
            current = None
        else:
            if current is None:  # deleted
                return
        if current is not None:
            text, final = current.model_dump_json(), current.state in FINAL
            if text != last:
                last, spoke = text, time.monotonic()
                yield f"event: {'end' if final else 'progress'}\ndata: {text}\n\n"
            if final:
                return
        if time.monotonic() - spoke >= HEARTBEAT_SECONDS:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await anyio.sleep(LOOK_SECONDS)


def _look(database: Database, run_id: str, principal: Principal) -> RunView | None:
    """The run as it is now. Raises UnauthenticatedError if the caller's key or session has ended."""
    with database.read() as session:
        if not auth.still_valid(session, principal):
            raise UnauthenticatedError("The API key or session is no longer valid.")
        found = queries.by_id(session, run_id)
        return None if found is None else view(*found)
