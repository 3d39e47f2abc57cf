"""Python client of the REST API.

    with Client("https://featurewatch.example", key="fw_...") as client:
        registration = client.register("assistant", name="v7", uri="hf://org/model@v7", parent="v6")
        client.wait(registration["run"]["id"])
        for row in client.features("assistant", checkpoint="v7", status=["suppressed", "absent"]):
            print(row["id"], row["projection_ratio"], row["successors"])

Answers are dictionaries of the shapes in service.client_types. Every POST carries an Idempotency-Key, so all calls can
be sent again: a refused connection, 429, 502, 503 and 504 are retried with growing pauses.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from service.client_transport import ApiError, ClientError, Transport, UnreachableError, given, path_of
from service.client_types import (
    Alert,
    AlertRule,
    Calibration,
    Checkpoint,
    Delivery,
    Dependencies,
    Example,
    Family,
    Feature,
    FeatureRow,
    Key,
    Link,
    Point,
    Registration,
    Run,
    Webhook,
)

__all__ = ["ApiError", "Client", "ClientError", "UnreachableError", "WaitTimeoutError"]

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


class WaitTimeoutError(ClientError):
    """A run was not over in time. It goes on: `run` is how it stood."""

    def __init__(self, run: Run, seconds: float) -> None:
        super().__init__(f"run {run['id']} is still {run['state']} after {seconds:.0f} s")
        self.run = run


class Client(Transport):
    """The calls of the API, one method each."""

    # Families

    def families(self) -> Iterator[Family]:
        """All families."""
        return self.pages("/v1/families")

    def family(self, name: str) -> Family:
        """One family."""
        return cast(Family, self.json("GET", path_of("families", name)))

    def create_family(
        self,
        name: str,
        hook_points: Sequence[str],
        *,
        corpus: Mapping[str, Any] | None = None,
        crosscoder: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> Family:
        """Make a family. What is left out takes the service's defaults."""
        body = {"name": name, "hook_points": list(hook_points), "corpus": corpus, "crosscoder": crosscoder}
        return cast(Family, self.json("POST", path_of("families"), body=given(**body, policy=policy)))

    # Checkpoints

    def checkpoints(self, family: str) -> Iterator[Checkpoint]:
        """The checkpoints of a family."""
        return self.pages(path_of("families", family, "checkpoints"))

    def checkpoint(self, family: str, name: str) -> Checkpoint:
        """One checkpoint."""
        return cast(Checkpoint, self.json("GET", path_of("families", family, "checkpoints", name)))

    def register(
        self,
        family: str,
        *,
        name: str,
        uri: str,
        adapter: str | None = None,
        parent: str | None = None,
        hook_points: Sequence[str] | None = None,
        fit: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Registration:
        """Register a checkpoint: a run reads it and judges every feature. The same one again: the same run."""
        body = given(name=name, uri=uri, adapter=adapter, parent=parent, fit=fit, metadata=metadata)
        if hook_points is not None:
            body["hook_points"] = list(hook_points)
        response = self.send("POST", path_of("families", family, "checkpoints"), body=body)
        return cast(Registration, response.json() | {"created": response.status_code != HTTPStatus.OK})

    def report(
        self,
        family: str,
        checkpoint: str,
        *,
        baseline: str | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
    ) -> dict[str, Any]:
        """What changed in a checkpoint: `headline`, `findings`, `not_judged`, `caveats` in words; counts, quality."""
        path = path_of("families", family, "checkpoints", checkpoint, "report")
        return self.json("GET", path, params=given(baseline=baseline, min_change=min_change, max_q=max_q))

    def report_text(
        self,
        family: str,
        checkpoint: str,
        *,
        format: str,
        baseline: str | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
    ) -> str:
        """The report as a document; `format` is markdown or html."""
        path = path_of("families", family, "checkpoints", checkpoint, "report")
        accept = {"Accept": "text/markdown" if format == "markdown" else "text/html"}
        params = given(baseline=baseline, min_change=min_change, max_q=max_q, format=format)
        return self.send("GET", path, params=params, headers=accept).text

    # Calibrations

    def calibrate(
        self,
        family: str,
        *,
        checkpoint: str | None = None,
        nulls: Sequence[str] | None = None,
        splits: int | None = None,
        seed: int | None = None,
        finetune: Mapping[str, Any] | None = None,
    ) -> Calibration:
        """Ask how often the family's thresholds raise a false alarm. It is a run: `wait` for its id."""
        body = given(checkpoint=checkpoint, splits=splits, seed=seed, finetune=finetune)
        if nulls is not None:
            body["nulls"] = list(nulls)
        return cast(Calibration, self.json("POST", path_of("families", family, "calibrations"), body=body))

    def calibrations(self, family: str) -> Iterator[Calibration]:
        """Calibrations of a family, newest first."""
        return self.pages(path_of("families", family, "calibrations"))

    def calibration(self, family: str, calibration: str) -> Calibration:
        """One calibration."""
        return cast(Calibration, self.json("GET", path_of("families", family, "calibrations", calibration)))

    # Features

    def features(
        self,
        family: str,
        *,
        checkpoint: str | None = None,
        baseline: str | None = None,
        status: Sequence[str] = (),
        q: str | None = None,
        tag: str | None = None,
        watched: bool | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
        sort: str | None = None,
    ) -> Iterator[FeatureRow]:
        """Features with their verdicts in a checkpoint. Of several statuses, any counts.

        min_change: least size of the change, in factors of two; max_q: largest q-value.
        """
        params = given(checkpoint=checkpoint, baseline=baseline, q=q, tag=tag, watched=watched, sort=sort)
        params |= given(min_change=min_change, max_q=max_q) | {"status": list(status)}
        return self.pages(path_of("families", family, "features"), params)

    def feature(self, family: str, feature: str) -> Feature:
        """One feature."""
        return cast(Feature, self.json("GET", path_of("families", family, "features", feature)))

    def trajectory(self, family: str, feature: str) -> list[Point]:
        """A feature's verdicts over all checkpoints."""
        answer = self.json("GET", path_of("families", family, "features", feature, "trajectory"))
        return cast(list[Point], answer["points"])

    def sources(self, family: str, feature: str) -> list[dict[str, Any]]:
        """A feature at every hook point of every checkpoint, and the one of each that it is read `best` at."""
        answer = self.json("GET", path_of("families", family, "features", feature, "sources"))
        return cast(list[dict[str, Any]], answer["data"])

    def examples(self, family: str, feature: str, *, limit: int = 10) -> list[Example]:
        """The places where a feature fires most, strongest first; at most 100."""
        path = path_of("families", family, "features", feature, "examples")
        return cast(list[Example], self.json("GET", path, params={"limit": limit})["data"])

    def update_feature(
        self,
        family: str,
        feature: str,
        *,
        label: str | None = None,
        tags: Sequence[str] | None = None,
        watched: bool | None = None,
    ) -> Feature:
        """Label, tag or watch a feature. What is left out stays."""
        body = given(label=label, tags=None if tags is None else list(tags), watched=watched)
        return cast(Feature, self.json("PATCH", path_of("families", family, "features", feature), body=body))

    def find_dependencies(self, family: str, checkpoint: str, features: Sequence[str], **options: Any) -> Run:
        """Queue a run that finds what features are computed from. options: `method`, `positions`, `effects`, ..."""
        path = path_of("families", family, "checkpoints", checkpoint, "dependencies")
        return cast(Run, self.json("POST", path, body=given(**options) | {"features": list(features)}))

    def dependencies(
        self,
        family: str,
        feature: str,
        *,
        checkpoint: str | None = None,
        baseline: str | None = None,
        method: str | None = None,
    ) -> Dependencies:
        """What a feature is computed from in a checkpoint; against a baseline, what was gained, lost and changed."""
        path = path_of("families", family, "features", feature, "dependencies")
        params = given(checkpoint=checkpoint, baseline=baseline, method=method)
        return cast(Dependencies, self.json("GET", path, params=params))

    def diff(
        self, family: str, from_: str, to: str, *, status: Sequence[str] = (), **query: Any
    ) -> Iterator[FeatureRow]:
        """The features of any two checkpoints, largest change first; only those with one of `status`, where given.

        query: `min_change`, `max_q`, `tag`, `watched`, `q`, `sort` as of `features`.
        """
        params = given(**query) | {"from": from_, "to": to, "status": list(status)}
        return self.pages(path_of("families", family, "diff"), params)

    def compare(self, family: str, from_: str, to: str, *, status: Sequence[str] = (), **query: Any) -> dict[str, Any]:
        """Any two checkpoints in words, as `report` says it, with the first of the features that `diff` lists.

        query: as of `diff`, and `limit`, how many features.
        """
        params = given(**query) | {"from": from_, "to": to, "status": list(status)}
        return self.json("GET", path_of("families", family, "diff"), params=params)

    def lineage(self, family: str, *, generation: int | None = None, kind: str | None = None) -> Iterator[Link]:
        """What re-fits made of the features, generation by generation; only links of one kind, where given."""
        return self.pages(path_of("families", family, "lineage"), given(generation=generation, kind=kind))

    def download_codes(self, family: str, path: Path, *, checkpoint: str | None = None) -> Path:
        """Save the sparse code up to a checkpoint (the newest), positions x features, as scipy's `save_npz` does."""
        params = given(checkpoint=checkpoint)
        self.download(path_of("families", family, "codes"), path, params=params)
        return path

    def code_ids(self, family: str, *, checkpoint: str | None = None) -> list[str]:
        """Feature ids of the code's columns, in their order."""
        path = path_of("families", family, "codes", "ids")
        return cast(list[str], self.json("GET", path, params=given(checkpoint=checkpoint))["feature_ids"])

    # Runs

    def runs(self, *, family: str | None = None, state: str | None = None) -> Iterator[Run]:
        """Runs, newest first."""
        return self.pages("/v1/runs", given(family=family, state=state))

    def run(self, run: str) -> Run:
        """One run."""
        return cast(Run, self.json("GET", path_of("runs", run)))

    def cancel(self, run: str) -> Run:
        """Ask a run to stop; a worker confirms it at its next step."""
        return cast(Run, self.json("POST", path_of("runs", run, "cancel")))

    def retry(self, run: str) -> Run:
        """Queue a failed or cancelled run again; it goes on from what is already made."""
        return cast(Run, self.json("POST", path_of("runs", run, "retry")))

    def wait(
        self,
        run: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Run], None] | None = None,
        interval: float = 1.0,
    ) -> Run:
        """Wait until a run is over, however it ends. `on_progress` sees it at each look.

        Raises WaitTimeoutError after `timeout` seconds; the run goes on.
        """
        start = time.monotonic()
        while True:
            current = self.run(run)
            if on_progress:
                on_progress(current)
            if current["state"] in FINAL_STATES:
                return current
            left = None if timeout is None else start + timeout - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeoutError(current, timeout or 0.0)
            time.sleep(interval if left is None else min(interval, left))

    # Webhooks

    def webhooks(self) -> Iterator[Webhook]:
        """All webhooks."""
        return self.pages("/v1/webhooks")

    def create_webhook(self, url: str, *, event_types: Sequence[str] = (), secret: str | None = None) -> Webhook:
        """Register a webhook; without event types it gets all. Keep `secret` of the answer: it is not shown again."""
        body = given(url=url, secret=secret) | {"event_types": list(event_types)}
        return cast(Webhook, self.json("POST", path_of("webhooks"), body=body))

    def update_webhook(self, webhook: str, **changes: Any) -> Webhook:
        """Change `url`, `event_types` or `enabled`."""
        return cast(Webhook, self.json("PATCH", path_of("webhooks", webhook), body=changes))

    def delete_webhook(self, webhook: str) -> None:
        """Remove a webhook with its deliveries."""
        self.send("DELETE", path_of("webhooks", webhook))

    def test_webhook(self, webhook: str) -> Delivery:
        """Send a test event."""
        return cast(Delivery, self.json("POST", path_of("webhooks", webhook, "test")))

    def deliveries(self, webhook: str) -> Iterator[Delivery]:
        """Deliveries of a webhook, newest first."""
        return self.pages(path_of("webhooks", webhook, "deliveries"))

    def redeliver(self, webhook: str, delivery: str) -> Delivery:
        """Send a delivery once more, with the same `webhook-id`."""
        return cast(Delivery, self.json("POST", path_of("webhooks", webhook, "deliveries", delivery, "redeliver")))

    # Alerts

    def alert_rules(self) -> Iterator[AlertRule]:
        """All alert rules."""
        return self.pages("/v1/alert-rules")

    def create_alert_rule(self, name: str, condition: Mapping[str, Any], *, family: str | None = None) -> AlertRule:
        """Make a rule, for one family or for all, e.g. with the condition `{"kind": "watched"}`."""
        body = given(name=name, condition=dict(condition), family=family)
        return cast(AlertRule, self.json("POST", path_of("alert-rules"), body=body))

    def delete_alert_rule(self, rule: str) -> None:
        """Remove a rule with its alerts."""
        self.send("DELETE", path_of("alert-rules", rule))

    def alerts(
        self, *, family: str | None = None, checkpoint: str | None = None, state: str | None = None
    ) -> Iterator[Alert]:
        """Alerts, newest first."""
        return self.pages("/v1/alerts", given(family=family, checkpoint=checkpoint, state=state))

    def acknowledge(self, alert: str) -> Alert:
        """Say that somebody has seen an alert."""
        return cast(Alert, self.json("POST", path_of("alerts", alert, "ack")))

    def mute(self, alert: str, *, hours: float | None = None) -> Alert:
        """Keep quiet about an alert, and new ones of its rule and family, for so long or until it is resolved."""
        return cast(Alert, self.json("POST", path_of("alerts", alert, "mute"), body=given(hours=hours)))

    # Keys

    def keys(self) -> Iterator[Key]:
        """All API keys, without their secrets."""
        return self.pages("/v1/keys")

    def create_key(self, name: str, scopes: Sequence[str]) -> Key:
        """Make an API key. Keep `key` of the answer: it is not shown again."""
        return cast(Key, self.json("POST", path_of("keys"), body={"name": name, "scopes": list(scopes)}))

    def revoke_key(self, key: str) -> None:
        """End an API key."""
        self.send("DELETE", path_of("keys", key))
