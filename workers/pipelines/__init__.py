"""What a run does, step by step. A pipeline gets an Execution and ends by writing its result in one transaction."""

from collections.abc import Callable

from workers.execution import Execution
from workers.pipelines.calibrating import calibrate
from workers.pipelines.dependencies import find_dependencies
from workers.pipelines.labelling import label
from workers.pipelines.onboard import onboard
from workers.pipelines.signature import signature

PIPELINES: dict[str, Callable[[Execution], None]] = {
    "onboard": onboard,
    "calibrate": calibrate,
    "label": label,
    "signature": signature,
    "dependencies": find_dependencies,
}
