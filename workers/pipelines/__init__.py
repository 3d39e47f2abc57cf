"""What a run does, step by step. A pipeline gets an Execution and ends by writing its result in one transaction."""

from collections.abc import Callable
from importlib import import_module

from featurewatch.service.store import damage
from featurewatch.workers.execution import Execution


def _of(module: str, name: str) -> Callable[[Execution], None]:
    """A pipeline, imported when it first runs: what one of them needs takes others seconds, and is no use to them.

    What the store has lost of the family is made again first, where it can be.
    """

    def run(execution: Execution) -> None:
        with execution.read() as session:
            lost = damage.lost(session, execution.artifacts, execution.family_id)
        import_module("featurewatch.workers.pipelines.shared.context").set_threads(execution)
        if lost:
            import_module("featurewatch.workers.pipelines.runs.restore").restore(execution, lost)
        getattr(import_module(f"featurewatch.workers.pipelines.runs.{module}"), name)(execution)

    return run


PIPELINES: dict[str, Callable[[Execution], None]] = {
    "onboard": _of("onboard", "onboard"),
    "calibrate": _of("calibrate", "calibrate"),
    "label": _of("label", "label"),
    "signature": _of("signature", "signature"),
    "dependencies": _of("dependencies", "find_dependencies"),
}
