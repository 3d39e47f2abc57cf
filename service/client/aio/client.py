"""Asynchronous Python client of the REST API.

    async with AsyncClient("https://featurewatch.example", key="fw_...") as client:
        registration = await client.register("assistant", name="v7", uri="hf://org/model@v7", parent="v6")
        await client.wait(registration["run"]["id"])
        async for row in client.features("assistant", checkpoint="v7", status=["suppressed", "absent"]):
            print(row["id"], row["projection_ratio"], row["successors"])

Answers are dictionaries of the shapes in service.client.types. What is written carries an Idempotency-Key, so all calls
can be sent again: a refused connection, 429, 502, 503 and 504 are retried with growing pauses, no sooner than
Retry-After says.
"""

from featurewatch.service.client.aio.families import AsyncFamilyCalls
from featurewatch.service.client.aio.features import AsyncFeatureCalls
from featurewatch.service.client.aio.notify import AsyncNotifyCalls
from featurewatch.service.client.aio.runs import AsyncRunCalls


class AsyncClient(AsyncFamilyCalls, AsyncFeatureCalls, AsyncRunCalls, AsyncNotifyCalls):
    """The calls of the API, one method each."""
