"""Figures for Prometheus: which there are, and how each is read. All come from the database, so that every API process
tells the same, whatever process did the work.

Names follow Prometheus' conventions: base units, `_total` for what only grows, `_info` for facts in labels.
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
from featurewatch.service.kit.clock import database_now
from featurewatch.service.runs.states import RunState
from featurewatch.service.status import queries

DELIVERY_STATES = ("pending", "delivered", "failed")
Sample = tuple[tuple[str, ...], float]
"""Values of the labels, and the figure."""


@dataclass(frozen=True)
class Metric:
    """One name with its labels; `read` gives its samples."""

    name: str
    text: str
    labels: tuple[str, ...]
    read: Callable[[Session], Iterable[Sample]]


def scrape(session: Session) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(session))
    return generate_latest(registry)


class _Collector:
    def __init__(self, session: Session) -> None:
        self.session = session

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        for metric in METRICS:
            made = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
            family = made(metric.name, metric.text, labels=metric.labels)
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
        "How long the oldest queued run has waited; 0: none waits.",
        (),
        _oldest(queries.oldest_queued),
    ),
    Metric(
        "featurewatch_compute_seconds_total",
        "Time that runs took, over all stages and attempts, by the device that computed.",
        ("kind", "device"),
        _compute,
    ),
    Metric("featurewatch_deliveries", "Webhook deliveries by state.", ("state",), _deliveries),
    Metric(
        "featurewatch_oldest_pending_delivery_seconds",
        "How long the oldest pending delivery has waited; 0: none is pending.",
        (),
        _oldest(queries.oldest_pending),
    ),
    Metric(
        "featurewatch_workers",
        "Workers that take runs, by state; stuck: their run gives no sign of life, or does not stop.",
        ("state",),
        _workers,
    ),
    Metric("featurewatch_open_alerts", "Alerts that nobody has seen to; empty: of no family.", ("family",), _alerts),
    Metric(
        "featurewatch_fvu_ratio",
        "Fraction of variance unexplained of the family's checkpoint that was judged last.",
        ("family", "checkpoint"),
        _fvu,
    ),
    Metric(
        "featurewatch_last_judged_timestamp_seconds",
        "When a checkpoint of the family was judged last, in Unix time.",
        ("family",),
        _judged,
    ),
    Metric("featurewatch_schema_info", "1, with the revision of the database's schema.", ("revision",), _schema),
    Metric(
        "featurewatch_build_info", "1, with the versions of featurewatch and Python.", ("version", "python"), _build
    ),
)
