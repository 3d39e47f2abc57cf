"""Python client of the REST API: `Client`, and `AsyncClient` with the same calls.

Results are dictionaries, typed in `service.client.types`.
"""

from featurewatch.service.client.aio.client import AsyncClient
from featurewatch.service.client.errors import ApiError, ClientError, UnreachableError, WaitTimeoutError
from featurewatch.service.client.sync.client import Client

__all__ = ["ApiError", "AsyncClient", "Client", "ClientError", "UnreachableError", "WaitTimeoutError"]
