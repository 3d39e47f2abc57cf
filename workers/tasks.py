"""Celery tasks: an id in, one call. What works is a child of the pool's process, which stays able to answer."""

from functools import cache

from featurewatch.service.config import Settings
from featurewatch.service.kit import telemetry
from featurewatch.service.kit.db import Database
from featurewatch.workers import app as celery
from featurewatch.workers.presence import Presence
from featurewatch.workers.supervisor import Supervisor
from featurewatch.workers.sweeps import Sweeper


@celery.app.task(name=celery.EXECUTE)
def execute(run_id: str) -> None:
    """Work on the run, or on the one of its family whose turn is first; a run that is taken already is no error."""
    _supervisor().run_next(run_id)


@celery.app.task(name=celery.HELP)
def help_others() -> None:
    """Do groups of harvests that other workers lead, while no run waits."""
    _supervisor().help_others()


@celery.app.task(name=celery.SWEEP)
def sweep() -> None:
    """Ring bells, reap, deliver webhooks, tidy up."""
    _sweeper().sweep()


@cache
def _resources() -> tuple[Settings, Database]:
    """Made at the first task, so in the pool's child: connections must not be shared over a fork."""
    settings = Settings()
    database = Database(settings.resolved_database_url)
    telemetry.trace_database(database)
    return settings, database


@cache
def _supervisor() -> Supervisor:
    settings, database = _resources()
    # None: the real ones. A deployment with kinds of its own sets this option of the app, as MODULE:NAME.
    pipelines = celery.app.conf.get("featurewatch_pipelines")
    return Supervisor(settings, database, pipelines=pipelines, stopping=celery.stopping)


@cache
def _presence() -> Presence:
    return Presence(_resources()[1], _supervisor())


def begin() -> None:
    """Say that this process takes runs."""
    _presence().start()


def end() -> None:
    """Before this process ends: it takes no runs any more."""
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
