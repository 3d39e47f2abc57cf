"""Calls about families, checkpoints, calibrations and signatures."""

from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from featurewatch.service.client import types
from featurewatch.service.client.aio.transport import AsyncTransport
from featurewatch.service.client.wire import given, path_of


class AsyncFamilyCalls(AsyncTransport):
    """One method for each call."""

    # Families

    def families(self) -> AsyncIterator[types.Family]:
        """List the families."""
        return self._list("families")

    async def family(self, name: str) -> types.Family:
        """Show a family with its settings."""
        return await self._get("families", name)

    async def create_family(
        self,
        name: str,
        hook_points: Sequence[str],
        *,
        corpus: types.Corpus | types.Untyped | None = None,
        crosscoder: types.CrosscoderOptions | types.Untyped | None = None,
        policy: types.Policy | types.Untyped | None = None,
    ) -> types.Family:
        """Create a family. Omitted arguments take the service's defaults."""
        options = {"corpus": corpus, "crosscoder": crosscoder, "policy": policy}
        return await self._post("families", name=name, hook_points=list(hook_points), **options)

    async def delete_family(self, name: str) -> None:
        """Delete a family with its checkpoints, features, runs and artifacts. This cannot be undone."""
        await self._delete("families", name)

    # Checkpoints

    def checkpoints(self, family: str, *, state: str | None = None) -> AsyncIterator[types.Checkpoint]:
        """List the checkpoints of a family."""
        return self._list("families", family, "checkpoints", state=state)

    async def checkpoint(self, family: str, name: str) -> types.Checkpoint:
        """Show a checkpoint with the quality of its fit."""
        return await self._get("families", family, "checkpoints", name)

    async def register(
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
    ) -> types.Registered:
        """Register a checkpoint: a run reads it and judges every feature. Repeating it returns the same run."""
        body = given(name=name, uri=uri, adapter=adapter, parent=parent, fit=fit, metadata=metadata, priority=priority)
        body |= given(hook_points=hook_points and list(hook_points))
        response = await self.send("POST", path_of("families", family, "checkpoints"), body=body)
        return response.json() | {"created": response.status_code != HTTPStatus.OK}

    async def delete_checkpoint(self, family: str, name: str, *, reparent: bool = False) -> None:
        """Delete a checkpoint with its verdicts, runs and alerts. If it has children, `reparent` moves them up."""
        await self._delete("families", family, "checkpoints", name, reparent=reparent or None)

    async def report(
        self,
        family: str,
        checkpoint: str,
        *,
        baseline: str | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
    ) -> types.Report:
        """Report what changed in a checkpoint: `headline`, `findings`, `not_judged`, `caveats`, counts, quality."""
        params = {"baseline": baseline, "min_change": min_change, "max_q": max_q}
        return await self._get("families", family, "checkpoints", checkpoint, "report", **params)

    async def report_text(
        self,
        family: str,
        checkpoint: str,
        *,
        format: str,
        baseline: str | None = None,
        min_change: float | None = None,
        max_q: float | None = None,
    ) -> str:
        """Get the report as a document; `format` is markdown or html."""
        path = path_of("families", family, "checkpoints", checkpoint, "report")
        accept = {"Accept": "text/markdown" if format == "markdown" else "text/html"}
        params = given(baseline=baseline, min_change=min_change, max_q=max_q, format=format)
        return (await self.send("GET", path, params=params, headers=accept)).text

    # Calibrations

    async def calibrate(
        self,
        family: str,
        *,
        checkpoint: str | None = None,
        nulls: Sequence[str] | None = None,
        splits: int | None = None,
        seed: int | None = None,
        finetune: types.FineTune | types.Untyped | None = None,
    ) -> types.Calibration:
        """Queue a run that measures how often the family's thresholds raise a false alarm; `wait` for its id."""
        body = {"checkpoint": checkpoint, "splits": splits, "seed": seed, "finetune": finetune}
        return await self._post("families", family, "calibrations", nulls=nulls and list(nulls), **body)

    def calibrations(self, family: str) -> AsyncIterator[types.Calibration]:
        """List the calibrations of a family, newest first."""
        return self._list("families", family, "calibrations")

    async def calibration(self, family: str, calibration: str) -> types.Calibration:
        """Get a calibration."""
        return await self._get("families", family, "calibrations", calibration)

    # Signatures

    async def create_signature(
        self,
        family: str,
        name: str,
        *,
        rows: Sequence[types.Labelled | types.Pair | types.Untyped] | None = None,
        uri: str | None = None,
        description: str | None = None,
        baseline: str | None = None,
        settings: types.SignatureSettings | types.Untyped | None = None,
    ) -> types.SignatureCreated:
        """Track a concept, defined by a contrast set: `rows`, or the `uri` of a file."""
        body = {"name": name, "uri": uri, "description": description, "baseline": baseline, "settings": settings}
        return await self._post("families", family, "signatures", rows=rows and list(rows), **body)

    def signatures(self, family: str) -> AsyncIterator[types.Signature]:
        """List the signatures of a family with their newest readings."""
        return self._list("families", family, "signatures")

    async def signature(self, family: str, name: str) -> types.Signature:
        """Get a signature."""
        return await self._get("families", family, "signatures", name)

    async def signature_trajectory(self, family: str, name: str) -> types.SignatureTrajectory:
        """Show a signature over all checkpoints, and the checkpoint where it turns."""
        return await self._get("families", family, "signatures", name, "trajectory")

    async def delete_signature(self, family: str, name: str) -> None:
        """Delete a signature with its readings. Queued runs that only read it are cancelled."""
        await self._delete("families", family, "signatures", name)
