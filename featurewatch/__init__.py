"""featurewatch from Python: clients of the REST API, and families for notebooks.

from featurewatch import Family

assistant = Family("assistant")                       # FEATUREWATCH_URL and FEATUREWATCH_KEY, or url= and key=
verdicts = assistant.trajectories()                   # pandas: every feature in every checkpoint
code = assistant.codes()                              # scipy CSR: positions x features
rows = assistant.decoder("v2", "resid_post.12")       # torch: features x d_model
read = assistant.encode(["Keep this secret."], "v2")  # features at every token of your own text
"""

from featurewatch.family import Dictionary, Encoded, Family
from service.client import ApiError, AsyncClient, Client, ClientError, UnreachableError, WaitTimeoutError

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "Dictionary",
    "Encoded",
    "Family",
    "UnreachableError",
    "WaitTimeoutError",
]
