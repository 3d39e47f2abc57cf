"""Celery tasks. The work itself happens in a child of the pool's process, which stays responsive."""

from functools import cache

from featurewatch.service.config import Settings
from featurewatch.service.kit import telemetry
from featurewatch.service.kit.db import Database
from featurewatch.workers import app as celery
from featurewatch.workers.supervision.presence import Presence
from featurewatch.workers.supervision.supervisor import Supervisor
from featurewatch.workers.sweeps import Sweeper


@celery.app.task(name=celery.EXECUTE)
def execute(run_id: str) -> None:
    """Execute this run, or the one of its family that goes first. It may have been claimed already."""
    _supervisor().run_next(run_id)


@celery.app.task(name=celery.HELP)
def help_others() -> None:
    """Help with other workers' harvests while no run is waiting."""
    _supervisor().help_others()


@celery.app.task(name=celery.SWEEP)
def sweep() -> None:
    """Wake workers, reap runs, deliver webhooks, tidy up."""
    _sweeper().sweep()


@cache
def _resources() -> tuple[Settings, Database]:
    """Created by the first task, in the pool's child: connections must not be shared across a fork."""
    settings = Settings()
    database = Database(settings.resolved_database_url)
    telemetry.trace_database(database)
    return settings, database


@cache
def _supervisor() -> Supervisor:
    settings, database = _resources()
    # A deployment with custom run kinds sets this option of the app, as MODULE:NAME.
    pipelines = celery.app.conf.get("featurewatch_pipelines")
    return Supervisor(settings, database, pipelines=pipelines, stopping=celery.stopping)


@cache
def _presence() -> Presence:
    return Presence(_resources()[1], _supervisor())


def begin() -> None:
    """Record that this process takes runs."""
    _presence().start()


def end() -> None:
    """Call before this process ends: it takes no more runs."""
    if _supervisor.cache_info().currsize:
        _supervisor().close()
    if _presence.cache_info().currsize:
        _presence().stop()


@cache
def _sweeper() -> Sweeper:
    settings, database = _resources()
    return Sweeper(
        settings,
        database,
        lambda run_id, queue: celery.publish(celery.app, run_id, queue),
        call_helper=lambda: celery.call_helper(celery.app),
    )
