"""Asynchronous Python client of the REST API.

    async with AsyncClient("https://featurewatch.example", key="fw_...") as client:
        registration = await client.register("assistant", name="v7", uri="hf://org/model@v7", parent="v6")
        await client.wait(registration["run"]["id"])
        async for row in client.features("assistant", checkpoint="v7", status=["suppressed", "absent"]):
            print(row["id"], row["projection_ratio"], row["successors"])

Results are dictionaries, typed in service.client.types. Writes carry an Idempotency-Key, so every call is safe to
retry: refused connections and the statuses 429, 502, 503 and 504 are retried with exponential backoff that respects
Retry-After.
"""

from featurewatch.service.client.aio.families import AsyncFamilyCalls
from featurewatch.service.client.aio.features import AsyncFeatureCalls
from featurewatch.service.client.aio.notify import AsyncNotifyCalls
from featurewatch.service.client.aio.runs import AsyncRunCalls


class AsyncClient(AsyncFamilyCalls, AsyncFeatureCalls, AsyncRunCalls, AsyncNotifyCalls):
    """The calls of the API, one method each."""
