# Written by `make docs` from service/client/aio/client.py.
"""Python client of the REST API.

    with Client("https://featurewatch.example", key="fw_...") as client:
        registration = client.register("assistant", name="v7", uri="hf://org/model@v7", parent="v6")
        client.wait(registration["run"]["id"])
        for row in client.features("assistant", checkpoint="v7", status=["suppressed", "absent"]):
            print(row["id"], row["projection_ratio"], row["successors"])

Results are dictionaries, typed in service.client.types. Writes carry an Idempotency-Key, so every call is safe to
retry: refused connections and the statuses 429, 502, 503 and 504 are retried with exponential backoff that respects
Retry-After.
"""

from featurewatch.service.client.sync.families import FamilyCalls
from featurewatch.service.client.sync.features import FeatureCalls
from featurewatch.service.client.sync.notify import NotifyCalls
from featurewatch.service.client.sync.runs import RunCalls


class Client(FamilyCalls, FeatureCalls, RunCalls, NotifyCalls):
    """The calls of the API, one method each."""
