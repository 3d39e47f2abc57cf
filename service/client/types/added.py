"""What the client adds to the API's shapes."""

from typing import Never

from featurewatch.service.client.types.checkpoints import DependencyFinding, Registration
from featurewatch.service.client.types.dependencies import DependencyComparison
from featurewatch.service.client.types.signatures import SignatureTrajectory

Untyped = dict[str, Never]
"""`dict[str, Any]`, as JSON from a file is: type checkers let it pass for this, but no dictionary whose values they
know, which has to be the shape that is asked for."""


class Registered(Registration):
    """The answer to a registration. `created` is False where the same checkpoint was registered before."""

    created: bool


# Deprecated names, which go with the next release.
CircuitFinding = DependencyFinding
Comparison = DependencyComparison
SignatureCourse = SignatureTrajectory
