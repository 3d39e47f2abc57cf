"""Celery tasks: an id in, one call."""

from functools import cache

from service.config import Settings
from service.kit import telemetry
from service.kit.artifacts import ArtifactStore
from service.kit.db import Database
from service.store.ledger import open_store
from workers import app as celery
from workers import runner
from workers.sweeps import Sweeper


@celery.app.task(name=celery.EXECUTE)
def execute(run_id: str) -> None:
    """Work on the run, or on the one of its family whose turn is first; a run that is taken already is no error."""
    settings, database, artifacts = _resources()
    runner.run_next(
        settings=settings,
        database=database,
        artifacts=artifacts,
        run_id=run_id,
        # None: the real ones. A deployment with kinds of its own sets this option of the app.
        pipelines=celery.app.conf.get("featurewatch_pipelines"),
        stop=celery.stopping,
    )


@celery.app.task(name=celery.HELP)
def help_others() -> None:
    """Do groups of harvests that other workers lead, while no run waits."""
    settings, database, artifacts = _resources()
    runner.help_others(settings=settings, database=database, artifacts=artifacts, stop=celery.stopping)


@celery.app.task(name=celery.SWEEP)
def sweep() -> None:
    """Ring bells, reap, deliver webhooks, tidy up."""
    _sweeper().sweep()


@cache
def _resources() -> tuple[Settings, Database, ArtifactStore]:
    """Made at the first task, so in the pool's child: connections must not be shared over a fork."""
    settings = Settings()
    database = Database(settings.resolved_database_url)
    artifacts = open_store(settings, database)
    telemetry.trace_database(database)
    return settings, database, artifacts


@cache
def _sweeper() -> Sweeper:
    settings, database, _ = _resources()
    return Sweeper(
        settings,
        database,
        lambda run_id, queue: celery.publish(celery.app, run_id, queue),
        call_helper=lambda: celery.call_helper(celery.app),
    )
