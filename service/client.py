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

from service.client_notify import NotifyingCalls
from service.client_transport import ApiError, ClientError, UnreachableError, given, path_of
from service.client_types import (
    Attempt,
    Calibration,
    Checkpoint,
    Dependencies,
    Example,
    Family,
    Feature,
    FeatureRow,
    Link,
    Point,
    Registration,
    Run,
)

__all__ = ["ApiError", "Client", "ClientError", "UnreachableError", "WaitTimeoutError"]

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


class WaitTimeoutError(ClientError):
    """A run was not over in time. It goes on: `run` is how it stood."""

    def __init__(self, run: Run, seconds: float) -> None:
        super().__init__(f"run {run['id']} is still {run['state']} after {seconds:.0f} s")
        self.run = run


class Client(NotifyingCalls):
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
        priority: int | None = None,
    ) -> Registration:
        """Register a checkpoint: a run reads it and judges every feature. The same one again: the same run."""
        body = given(name=name, uri=uri, adapter=adapter, parent=parent, fit=fit, metadata=metadata, priority=priority)
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

    # Signatures

    def create_signature(
        self,
        family: str,
        name: str,
        *,
        rows: Sequence[Mapping[str, Any]] | None = None,
        uri: str | None = None,
        description: str | None = None,
        baseline: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Watch a concept that a contrast set shows (`rows`, or the `uri` of a file): `signature`, and its `runs`."""
        body = given(name=name, uri=uri, description=description, baseline=baseline, settings=settings)
        if rows is not None:
            body["rows"] = list(rows)
        return self.json("POST", path_of("families", family, "signatures"), body=body)

    def signatures(self, family: str) -> Iterator[dict[str, Any]]:
        """The signatures of a family, each with its newest reading."""
        return self.pages(path_of("families", family, "signatures"))

    def signature(self, family: str, name: str) -> dict[str, Any]:
        """One signature."""
        return self.json("GET", path_of("families", family, "signatures", name))

    def signature_trajectory(self, family: str, name: str) -> dict[str, Any]:
        """A signature over all checkpoints: `points`, and the checkpoint where it `turns_at`."""
        return self.json("GET", path_of("families", family, "signatures", name, "trajectory"))

    def delete_signature(self, family: str, name: str) -> None:
        """Forget a signature and its readings."""
        self.send("DELETE", path_of("families", family, "signatures", name))

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

    def label(self, family: str, *, features: Sequence[str] | None = None, checkpoint: str | None = None) -> Run:
        """Have features labelled by the server's endpoint; without names those that are watched or changed."""
        body: dict[str, Any] = given(checkpoint=checkpoint)
        if features is not None:
            body["features"] = list(features)
        return cast(Run, self.json("POST", path_of("families", family, "features", "labels"), body=body))

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

    def download_table(self, family: str, table: str, path: Path) -> Path:
        """Save all `verdicts`, readings at `sources`, or `features` of a family as a Parquet file."""
        self.download(path_of("families", family, "tables", table), path)
        return path

    def code_ids(self, family: str, *, checkpoint: str | None = None) -> list[str]:
        """Feature ids of the code's columns, in their order."""
        path = path_of("families", family, "codes", "ids")
        return cast(list[str], self.json("GET", path, params=given(checkpoint=checkpoint))["feature_ids"])

    def neuronpedia(
        self, family: str, *, checkpoint: str | None = None, passages: int = 10
    ) -> Iterator[dict[str, Any]]:
        """All features of a checkpoint, as Neuronpedia-style viewers read them."""
        path = path_of("families", family, "neuronpedia")
        return self.pages(path, given(checkpoint=checkpoint, passages=passages, limit=100))

    # Runs

    def runs(self, *, family: str | None = None, state: str | None = None) -> Iterator[Run]:
        """Runs, newest first."""
        return self.pages("/v1/runs", given(family=family, state=state))

    def run(self, run: str) -> Run:
        """One run."""
        return cast(Run, self.json("GET", path_of("runs", run)))

    def attempts(self, run: str) -> Iterator[Attempt]:
        """Each try at a run by a worker, oldest first: how it ended, and what it cost."""
        return self.pages(path_of("runs", run, "attempts"))

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
