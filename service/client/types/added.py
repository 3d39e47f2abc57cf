"""What the client adds to the API's shapes."""

from typing import Never

from featurewatch.service.client.types.checkpoints import DependencyFinding, Registration
from featurewatch.service.client.types.dependencies import DependencyComparison
from featurewatch.service.client.types.signatures import SignatureTrajectory

Untyped = dict[str, Never]
"""Accepts `dict[str, Any]`, such as JSON from a file. A dictionary of known values must have the expected shape."""


class Registered(Registration):
    """The response to a registration. `created` is False if the same checkpoint was registered before."""

    created: bool


# Deprecated names, to be removed in the next release.
CircuitFinding = DependencyFinding
Comparison = DependencyComparison
SignatureCourse = SignatureTrajectory
