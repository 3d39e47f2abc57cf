# Written by `make docs` from service/client/aio/features.py.
"""Calls about features: verdicts, code, labels and dependencies."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from featurewatch.service.client import types
from featurewatch.service.client.sync.transport import Transport
from featurewatch.service.client.wire import given, path_of


class FeatureCalls(Transport):
    """One method for each call."""

    # Features

    def features(
        self,
        family: str,
        *,
        checkpoint: str | None = None,
        baseline: str | None = None,
        status: Sequence[str] = (),
        places: Sequence[str] = (),
        q: str | None = None,
        tag: str | None = None,
        watched: bool | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
        sort: str | None = None,
        order: str | None = None,
    ) -> Iterator[types.FeatureRow]:
        """List features with their verdicts in a checkpoint.

        status, places: any of these. min_change: minimum size of the change, in factors of two. max_q: maximum q-value.
        """
        filters = {"q": q, "tag": tag, "watched": watched, "min_change": min_change, "max_q": max_q}
        options = filters | {"checkpoint": checkpoint, "baseline": baseline, "sort": sort, "order": order}
        return self._list("families", family, "features", status=list(status), places=list(places), **options)

    def feature(self, family: str, feature: str) -> types.Feature:
        """Get a feature with its newest verdict."""
        return self._get("families", family, "features", feature)

    def trajectory(self, family: str, feature: str) -> list[types.Point]:
        """Get the verdicts of a feature over all checkpoints."""
        return (self._get("families", family, "features", feature, "trajectory"))["points"]

    def sources(self, family: str, feature: str) -> list[types.FeatureInCheckpoint]:
        """Get the readings of a feature at every hook point, and the `best` hook point of each checkpoint."""
        return (self._get("families", family, "features", feature, "sources"))["data"]

    def examples(self, family: str, feature: str, *, limit: int = 10) -> list[types.Example]:
        """Get the passages where a feature fires most strongly, strongest first; up to 100."""
        return (self._get("families", family, "features", feature, "examples", limit=limit))["data"]

    def update_feature(
        self,
        family: str,
        feature: str,
        *,
        label: str | None = None,
        tags: Sequence[str] | None = None,
        watched: bool | None = None,
    ) -> types.Feature:
        """Label, tag or watch a feature. Omitted arguments change nothing; an empty label removes the label."""
        body = given(label=label, tags=tags and list(tags), watched=watched)
        if label == "":
            body["label"] = None
        return self.json("PATCH", path_of("families", family, "features", feature), body=body)

    def label(self, family: str, *, features: Sequence[str] | None = None, checkpoint: str | None = None) -> types.Run:
        """Queue a run that labels features with the server's model; by default the watched and changed ones."""
        body = {"checkpoint": checkpoint, "features": features and list(features)}
        return self._post("families", family, "features", "labels", **body)

    def find_dependencies(
        self,
        family: str,
        checkpoint: str,
        features: Sequence[str],
        *,
        method: str | None = None,
        positions: int | None = None,
        steps: int | None = None,
        hook_point: str | None = None,
        effects: bool | None = None,
    ) -> types.Run:
        """Queue a run that finds what features are computed from, at up to `positions` positions of each.

        method: gradient (default), relp, or integrated, which takes `steps`. effects: also ablate the features and
        measure the effect on the next token.
        """
        body = {"method": method, "positions": positions, "steps": steps, "hook_point": hook_point, "effects": effects}
        path = "families", family, "checkpoints", checkpoint, "dependencies"
        return self._post(*path, features=list(features), **body)

    def dependencies(
        self,
        family: str,
        feature: str,
        *,
        checkpoint: str | None = None,
        baseline: str | None = None,
        method: str | None = None,
    ) -> types.Dependencies:
        """Get what a feature is computed from; with a baseline, also the edges gained, lost and changed."""
        params = {"checkpoint": checkpoint, "baseline": baseline, "method": method}
        return self._get("families", family, "features", feature, "dependencies", **params)

    def diff(
        self,
        family: str,
        from_: str,
        to: str,
        *,
        status: Sequence[str] = (),
        places: Sequence[str] = (),
        q: str | None = None,
        tag: str | None = None,
        watched: bool | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
        sort: str | None = None,
        order: str | None = None,
    ) -> Iterator[types.FeatureRow]:
        """List the changes between any two checkpoints, largest first. Filters are those of `features`."""
        filters = {"q": q, "tag": tag, "watched": watched, "min_change": min_change, "max_q": max_q}
        options = filters | {"from": from_, "to": to, "sort": sort, "order": order}
        return self._list("families", family, "diff", status=list(status), places=list(places), **options)

    def compare(
        self,
        family: str,
        from_: str,
        to: str,
        *,
        status: Sequence[str] = (),
        places: Sequence[str] = (),
        q: str | None = None,
        tag: str | None = None,
        watched: bool | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
        sort: str | None = None,
        order: str | None = None,
        limit: int | None = None,
    ) -> types.Diff:
        """Compare any two checkpoints: a summary as in `report`, and the first `limit` features of `diff`."""
        filters = {"q": q, "tag": tag, "watched": watched, "min_change": min_change, "max_q": max_q}
        options = filters | {"from": from_, "to": to, "sort": sort, "order": order, "limit": limit}
        return self._get("families", family, "diff", status=list(status), places=list(places), **options)

    def lineage(
        self, family: str, *, generation: int | None = None, kind: str | None = None
    ) -> Iterator[types.LineageLink]:
        """List what happened to the features in re-fits, by generation; optionally only links of one kind."""
        return self._list("families", family, "lineage", generation=generation, kind=kind)

    def download_codes(self, family: str, path: Path, *, checkpoint: str | None = None) -> Path:
        """Save the sparse code up to a checkpoint (default: the newest), positions x features, as a scipy .npz file."""
        self.download(path_of("families", family, "codes"), path, params=given(checkpoint=checkpoint))
        return path

    def download_dictionary(self, family: str, checkpoint: str, path: Path, *, hook_point: str | None = None) -> Path:
        """Save what a checkpoint reads and writes for each feature at one hook point, as safetensors."""
        params = given(hook_point=hook_point)
        self.download(path_of("families", family, "checkpoints", checkpoint, "dictionary"), path, params=params)
        return path

    def download_table(self, family: str, table: str, path: Path) -> Path:
        """Save a table of a family (`verdicts`, `sources` or `features`) as a Parquet file."""
        self.download(path_of("families", family, "tables", table), path)
        return path

    def code_ids(self, family: str, *, checkpoint: str | None = None) -> list[str]:
        """Get the feature ids of the code's columns, in order."""
        return (self._get("families", family, "codes", "ids", checkpoint=checkpoint))["feature_ids"]

    def neuronpedia(
        self, family: str, *, checkpoint: str | None = None, passages: int = 10
    ) -> Iterator[types.NeuronpediaFeature]:
        """List all features of a checkpoint in the format of Neuronpedia."""
        return self._list("families", family, "neuronpedia", checkpoint=checkpoint, passages=passages, limit=100)

    def neuronpedia_feature(
        self, family: str, feature: str, *, checkpoint: str | None = None, passages: int = 10
    ) -> types.NeuronpediaFeature:
        """Get a feature in the format of Neuronpedia."""
        return self._get(
            "families", family, "features", feature, "neuronpedia", checkpoint=checkpoint, passages=passages
        )
