"""Runs that harvest a tiny model and do nothing else, slow enough that others can help; and their Celery app."""

import time
from typing import Any

from featurewatch.workers.activations.harvest import shards
from featurewatch.workers.app import app
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import load_context
from featurewatch.workers.pipelines.stages.harvest import harvest_activations
from tests.workers.toy import PIPELINES as TOYS

BATCH_SECONDS = 0.1
_read_batch = shards.read_batch


def read_slowly(*arguments: Any, **named: Any) -> int:
    """A batch takes as long as one of a larger model."""
    time.sleep(BATCH_SECONDS)
    return _read_batch(*arguments, **named)


def harvest(execution: Execution) -> None:
    """The first stage of an onboarding."""
    shards.read_batch = read_slowly
    with execution.stage("harvest"):
        name, _, _ = harvest_activations(execution, load_context(execution))
    with execution.write() as session:
        execution.finish(session, {"activations": name})


PIPELINES = TOYS | {"harvest": harvest}
app.conf.featurewatch_pipelines = "tests.workers.harvests:PIPELINES"
