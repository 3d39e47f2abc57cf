"""Prometheus metrics. All are read from the database, so every API process reports the same values.

Names follow the Prometheus conventions: base units, `_total` for counters, `_info` for facts in labels.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from alembic.runtime.migration import MigrationContext
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from sqlalchemy.orm import Session

from featurewatch.service import __version__
from featurewatch.service.health import queries
from featurewatch.service.kit.clock import database_now
from featurewatch.service.runs.states import RunState

DELIVERY_STATES = ("pending", "delivered", "failed")
Sample = tuple[tuple[str, ...], float]
"""Label values, and the metric's value."""


@dataclass(frozen=True)
class Metric:
    """A metric with its labels. `read` returns its samples."""

    name: str
    text: str
    labels: tuple[str, ...]
    read: Callable[[Session], Iterable[Sample]]


def scrape(session: Session) -> bytes:
    """All metrics in the Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(session))
    return generate_latest(registry)


class _Collector:
    def __init__(self, session: Session) -> None:
        self.session = session

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        for metric in METRICS:
            kind = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
            family = kind(metric.name, metric.text, labels=metric.labels)
            for labels, value in metric.read(self.session):
                family.add_metric(labels, value)
            yield family


def _runs(session: Session) -> Iterator[Sample]:
    counts = queries.runs_by_kind_and_state(session)
    for kind in sorted({kind for kind, _ in counts}):
        for state in RunState:
            yield (kind, str(state)), counts.get((kind, state), 0)


def _deliveries(session: Session) -> Iterator[Sample]:
    counts = queries.deliveries_by_state(session)
    for state in DELIVERY_STATES:
        yield (state,), counts.get(state, 0)


def _oldest(find: Callable[[Session], datetime | None]) -> Callable[[Session], Iterator[Sample]]:
    def read(session: Session) -> Iterator[Sample]:
        since = find(session)
        yield (), (database_now(session) - since).total_seconds() if since else 0.0

    return read


def _alerts(session: Session) -> Iterator[Sample]:
    for family, count in queries.open_alerts(session):
        yield (family,), count


def _fvu(session: Session) -> Iterator[Sample]:
    for family, checkpoint, _, quality in queries.newest_judged(session):
        if isinstance(quality.get("fvu"), (int, float)):
            yield (family, checkpoint), quality["fvu"]


def _judged(session: Session) -> Iterator[Sample]:
    for family, _, at, _ in queries.newest_judged(session):
        yield (family,), at.timestamp()


def _compute(session: Session) -> Iterator[Sample]:
    for kind, device, seconds in queries.compute_seconds(session):
        yield (kind, device), seconds


def _schema(session: Session) -> Iterator[Sample]:
    yield (MigrationContext.configure(session.connection()).get_current_revision() or "none",), 1


def _workers(session: Session) -> Iterator[Sample]:
    running, stuck = queries.workers(session, database_now(session))
    yield ("ok",), running - stuck
    yield ("stuck",), stuck


def _build(_: Session) -> Iterator[Sample]:
    yield (__version__, platform.python_version()), 1


METRICS = (
    Metric("featurewatch_runs", "Runs by kind and state.", ("kind", "state"), _runs),
    Metric(
        "featurewatch_oldest_queued_seconds",
        "Age of the oldest queued run; 0 if the queue is empty.",
        (),
        _oldest(queries.oldest_queued),
    ),
    Metric(
        "featurewatch_compute_seconds_total",
        "Compute time of runs over all stages and attempts, by device.",
        ("kind", "device"),
        _compute,
    ),
    Metric("featurewatch_deliveries", "Webhook deliveries by state.", ("state",), _deliveries),
    Metric(
        "featurewatch_oldest_pending_delivery_seconds",
        "Age of the oldest pending delivery; 0 if none is pending.",
        (),
        _oldest(queries.oldest_pending),
    ),
    Metric(
        "featurewatch_workers",
        "Workers by state; a worker is stuck if its run shows no progress or does not stop.",
        ("state",),
        _workers,
    ),
    Metric(
        "featurewatch_open_alerts", "Open alerts by family; empty for alerts without a family.", ("family",), _alerts
    ),
    Metric(
        "featurewatch_fvu_ratio",
        "Fraction of variance unexplained on the family's most recently judged checkpoint.",
        ("family", "checkpoint"),
        _fvu,
    ),
    Metric(
        "featurewatch_last_judged_timestamp_seconds",
        "Unix time at which a checkpoint of the family was last judged.",
        ("family",),
        _judged,
    ),
    Metric("featurewatch_schema_info", "Always 1; labelled with the schema revision.", ("revision",), _schema),
    Metric(
        "featurewatch_build_info",
        "Always 1; labelled with the versions of featurewatch and Python.",
        ("version", "python"),
        _build,
    ),
)
