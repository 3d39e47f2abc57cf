"""The Celery app: `celery -A featurewatch.workers.app worker -Q runs,cpu,shards -c 1`, and `... --beat -Q sweeps`.

Messages only wake a worker. They are acknowledged before the work starts: with late acknowledgement, Redis would give
a message to a second worker once the work outlives the visibility timeout. All state that must not be lost is in SQL.
"""

import importlib
import mmap
from types import ModuleType
from typing import Any

from celery import Celery, signals
from kombu.exceptions import ChannelError

from featurewatch.service.config import Settings
from featurewatch.service.kit import telemetry
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.kit.private import keep_private
from featurewatch.service.runs.kinds import QUEUES

EXECUTE = "featurewatch.workers.tasks.execute"
HELP = "featurewatch.workers.tasks.help_others"
SWEEP = "featurewatch.workers.tasks.sweep"
BROKER_SECONDS = 3.0

# One byte shared between the pool's children and the process that gets the signals. Not an Event: a signal could arrive
# while its lock is held.
_stopping = mmap.mmap(-1, 1)


def make_app(settings: Settings) -> Celery:
    """A Celery app for these settings. Opens no connection."""
    app = Celery("featurewatch", broker=settings.broker_url or "memory://", include=["featurewatch.workers.tasks"])
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue="runs",
        task_routes={EXECUTE: {"queue": "runs"}, HELP: {"queue": "shards"}, SWEEP: {"queue": "sweeps"}},
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_timeout=BROKER_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # A worker reads its queues in the order of its -Q option: runs before shards.
            "queue_order_strategy": "priority",
            "socket_connect_timeout": BROKER_SECONDS,
            "socket_timeout": 2 * BROKER_SECONDS,
            "socket_keepalive": True,
            # For publishing; a worker retries its own connection forever.
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
        # In memory: its one entry is due every second, so nothing need survive a restart.
        beat_scheduler="celery.beat:Scheduler",
        beat_schedule={
            "sweep": {
                "task": SWEEP,
                "schedule": settings.poll_seconds,
                # A sweep that waited behind a slow one has nothing left to do.
                "options": {"queue": "sweeps", "expires": max(5.0, 2 * settings.poll_seconds)},
            }
        },
    )
    return app


def publish(app: Celery, run_id: str, queue: str) -> None:
    """Wake a worker for a run. Raises within seconds if the broker is unavailable."""
    app.send_task(EXECUTE, args=[run_id], queue=queue, retry=False)


def call_helper(app: Celery) -> None:
    """Ask an idle worker to help with a harvest, unless the last request is still queued because all are busy."""
    with app.producer_or_acquire() as producer:
        try:
            waiting = producer.channel.queue_declare("shards", passive=True).message_count
        except ChannelError:  # an empty queue does not exist
            waiting = 0
        if not waiting:
            app.send_task(HELP, queue="shards", retry=False, producer=producer)


def stopping() -> bool:
    """Whether this worker was asked to stop."""
    return _stopping[:1] != b"\0"


@signals.worker_shutting_down.connect
def _on_shutdown(**_: Any) -> None:
    _stopping[:1] = b"\1"


@signals.worker_init.connect
def _on_start(**_: Any) -> None:
    keep_private(Settings())  # its children inherit the umask


@signals.setup_logging.connect
def _on_logging(**_: Any) -> None:
    configure_logging(Settings())


@signals.celeryd_after_setup.connect
def _on_setup(instance: Any, **_: Any) -> None:
    app.conf.featurewatch_takes_runs = not set(QUEUES).isdisjoint(instance.app.amqp.queues.consume_from)


@signals.worker_process_init.connect
def _on_child(**_: Any) -> None:
    telemetry.trace_tasks()
    if app.conf.get("featurewatch_takes_runs"):
        _tasks().begin()


@signals.worker_process_shutdown.connect
def _on_child_shutdown(**_: Any) -> None:
    _tasks().end()


def _tasks() -> ModuleType:
    # Not at the top: it imports the app of this module.
    return importlib.import_module("featurewatch.workers.tasks")


app = make_app(Settings())
