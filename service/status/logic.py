"""Whether the service can serve, and its figures for Prometheus."""

from collections.abc import Callable, Iterator

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.kit.artifacts import ArtifactStore
from service.kit.clock import utcnow
from service.kit.db import Database
from service.migrate import SchemaError, check_connection
from service.runs.states import RunState
from service.status import queries

log = structlog.get_logger("featurewatch.status")

DELIVERY_STATES = ("pending", "delivered", "failed")


def readiness(database: Database, artifacts: ArtifactStore) -> dict[str, str]:
    """`ok`, or what is wrong, for each thing that the service needs."""
    return {
        "database": _try(lambda: _ping(database)),
        "schema": _try(lambda: _schema(database)),
        "artifacts": _try(lambda: _artifacts(artifacts)),
    }


def metrics(session: Session) -> bytes:
    """The text that Prometheus scrapes. All of it is read from the database: every API process tells the same."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(session))
    return generate_latest(registry)


class _Collector:
    def __init__(self, session: Session) -> None:
        self.session = session

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield _counts("featurewatch_runs", "Runs by state.", queries.runs_by_state(self.session), tuple(RunState))
        queued = queries.oldest_queued(self.session)
        age = GaugeMetricFamily("featurewatch_oldest_queued_seconds", "How long the oldest queued run has waited.")
        age.add_metric([], (utcnow() - queued).total_seconds() if queued else 0.0)
        yield age
        counts = queries.deliveries_by_state(self.session)
        yield _counts("featurewatch_deliveries", "Webhook deliveries by state.", counts, DELIVERY_STATES)
        fvu = GaugeMetricFamily(
            "featurewatch_fvu",
            "Fraction of variance unexplained of the checkpoint that was judged last.",
            labels=["family", "checkpoint"],
        )
        for family, checkpoint, quality in queries.newest_quality(self.session):
            if isinstance(quality.get("fvu"), (int, float)):
                fvu.add_metric([family, checkpoint], quality["fvu"])
        yield fvu


def _counts(name: str, text: str, counts: dict[str, int], states: tuple[str, ...]) -> GaugeMetricFamily:
    metric = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        metric.add_metric([str(state)], counts.get(state, 0))
    return metric


def _try(check: Callable[[], None]) -> str:
    try:
        check()
    except SchemaError as error:
        return str(error)
    except (SQLAlchemyError, OSError) as error:
        # The message may hold addresses and user names; it belongs into the log.
        log.warning("not ready", error=str(error))
        return f"not reachable ({type(error).__name__})"
    return "ok"


def _ping(database: Database) -> None:
    with database.read() as session:
        queries.ping(session)


def _schema(database: Database) -> None:
    with database.reader.connect() as connection:
        check_connection(connection)


def _artifacts(artifacts: ArtifactStore) -> None:
    if artifacts.is_local:
        artifacts.fs.makedirs(artifacts.base, exist_ok=True)
    artifacts.fs.exists(artifacts.base)
