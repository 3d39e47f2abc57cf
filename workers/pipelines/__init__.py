"""What each kind of run does. A pipeline gets an Execution, and ends by writing its result in one transaction."""

from collections.abc import Callable
from importlib import import_module

from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.store import damage
from featurewatch.workers.execution import Execution


def _pipeline(kind: RunKind) -> Callable[[Execution], None]:
    """`run` of the module in `runs` with the name of the kind. It is imported when it first runs, which takes seconds.

    Artifacts of the family that the store has lost are restored first, where possible.
    """

    def run(execution: Execution) -> None:
        with execution.read() as session:
            lost = damage.lost(session, execution.artifacts, execution.family_id)
        import_module("featurewatch.workers.pipelines.shared.context").set_threads(execution.settings)
        if lost:
            import_module("featurewatch.workers.pipelines.runs.restore").restore(execution, lost)
        import_module(f"featurewatch.workers.pipelines.runs.{kind}").run(execution)

    return run


PIPELINES: dict[str, Callable[[Execution], None]] = {kind: _pipeline(kind) for kind in RunKind}
