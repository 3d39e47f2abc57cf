"""A filled installation: a lineage on real text in which each feature fires on a word, and one of everything else."""

import json
import re
from datetime import timedelta
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sqlalchemy import select

from benchmarks.service_data import FAMILY, Filler, Lineage
from featurewatch.service import migrate
from featurewatch.service.alerts import logic as alerts
from featurewatch.service.alerts.schemas import AlertRuleCreate
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.config import Settings
from featurewatch.service.dependencies import figures
from featurewatch.service.dependencies.store import load
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.features import logic as features
from featurewatch.service.features.schemas import FeaturePatch
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.models import Alert, Attempt, Checkpoint, Family, Run, Verdict
from featurewatch.service.recording import dependencies, verdicts
from featurewatch.service.verdicts import queries, stored
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import GONE, Status
from featurewatch.service.webhooks import logic as webhooks
from featurewatch.service.webhooks.schemas import WebhookCreate
from tests import factories

N_FEATURES, N_CHECKPOINTS, EXAMPLES = 400, 11, 12
DOCUMENTS, WORDS = 250, 60
FAULT = {
    "code": "out-of-memory",
    "exception": 'Traceback (most recent call last):\n  File "/app/workers/runner.py", line 107, in _execute\n'
    "    _pipeline(execution, pipelines)(execution)\nworkers.errors.RunError: it needs 3.2 GiB, and 1.5 are free",
}
MOVED = {
    1: ("broadened", 1.9, 0.02, 3.0),
    2: ("narrowed", 0.01, 0.7, 0.3),
    3: ("displaced", 1.1, 0.9, 1.2),
    4: ("indeterminate", 0.4, 0.4, 1.0),
}
"""Feature -> its places in the newest checkpoint, gained and lost share, and firing rate ratio."""
HOSTILE = "<script>alert('label')</script>\"'><img src=x onerror=alert(1)>"
"""A label that would run as a script if it were not escaped."""


def corpus() -> list[str]:
    """Texts that exist on every machine: paragraphs of Python's own documentation, cut to WORDS words."""
    paragraphs = [" ".join(part.split()) for text in topics.values() for part in text.split("\n\n")]
    return [" ".join(part.split()[:WORDS]) for part in paragraphs if len(part.split()) >= WORDS // 2][:DOCUMENTS]


class Pages(Filler):
    """Fills a family whose features have passages."""

    def __init__(self, settings: Settings, n_features: int = N_FEATURES) -> None:
        super().__init__(settings, Lineage(n_features, ["resid_post.4", "resid_post.12"], seed=3))
        self.texts = corpus()
        matches = [
            (d, m.start(), m.end(), m[0]) for d, text in enumerate(self.texts) for m in re.finditer(r"\S+", text)
        ]
        self.document, self.start, self.end = (np.array([row[at] for row in matches]) for at in range(3))
        words = [row[3].strip(".,()\"'").lower() for row in matches]
        self.words, self.word = np.unique(words, return_inverse=True)
        counts = np.bincount(self.word)
        # Words that are neither rare nor everywhere, the most frequent first.
        ranked = np.argsort(-counts)
        self.ranked = ranked[(counts[ranked] >= 4) & (counts[ranked] < len(matches) // 50)]

    def corpus(self, family_id: str) -> dict[str, Any]:
        positions, documents = f"{family_id}/positions.safetensors", f"{family_id}/documents.jsonl"
        with self.artifacts.create(documents) as path:
            lines = [f'{{"id": {number}, "text": {json.dumps(text)}}}\n' for number, text in enumerate(self.texts)]
            path.write_text("".join(lines), encoding="utf-8")
        factories.save(self.artifacts, positions, {"document": self.document, "start": self.start, "end": self.end})
        return {"digest": "0", "count": len(self.word), "artifact": positions, "documents": documents}

    def keep(self, family_id: str, checkpoint_id: str, place: int, outcome: verdicts.Outcome) -> tuple[str, str]:
        """Feature n fires on the n-th word, and weakly on the next one."""
        del place
        rng, columns, rows, values = np.random.default_rng(0), [], [], []
        for column, number in enumerate(outcome.numbers.tolist()):
            for word, scale in ((number, 3.0), (number + 1, 0.6)):
                at = np.flatnonzero(self.word == self.ranked[word % len(self.ranked)])
                rows.append(at)
                columns.append(np.full(len(at), column))
                values.append(rng.lognormal(0, 0.3, len(at)) * scale)
        row, column, value = (np.concatenate(part) for part in (rows, columns, values))
        order = np.lexsort((column, row))
        row, column, value = row[order], column[order].astype(np.int32), value[order].astype(np.float32)
        indptr = np.searchsorted(row, np.arange(len(self.word) + 1))
        code, examples = (f"{family_id}/{kind}-{checkpoint_id}.safetensors" for kind in ("code", "examples"))
        factories.save(
            self.artifacts, code,
            {"indptr": indptr, "indices": column, "values": value, "feature_numbers": outcome.numbers},
        )  # fmt: skip
        places = np.full((len(outcome.numbers), EXAMPLES), -1)
        tops = np.zeros(places.shape, np.float32)
        for one in range(len(outcome.numbers)):
            mine = np.flatnonzero(column == one)
            best = mine[np.argsort(-value[mine])][:EXAMPLES]
            places[one, : len(best)], tops[one, : len(best)] = row[best], value[best]
        with self.artifacts.create(examples) as path:
            save_file({"positions": places, "values": tops}, path)
        return code, examples

    def fill(self, n_checkpoints: int) -> None:
        super().fill(n_checkpoints)
        with self.database() as database, database.write() as session:
            family = families.get(session, FAMILY)
            newest = checkpoints.get(session, family, f"v{n_checkpoints - 1}")
            self._name(session, family)
            self._places(session, family)
            self._circuits(session, family, newest)
            self._runs(session, family, newest)
            self._alerts(session, family, newest)
            self._webhooks(session)
            empty = FamilyIn(name="empty", hook_points=["resid_post.1"])
            families.create(session, self.settings, empty)

    def _name(self, session: Any, family: Family) -> None:
        """Give features labels and tokens that match their words."""
        for number in range(family.n_features):
            row = features.get(session, family, f"F{number}")
            word = str(self.words[self.ranked[number % len(self.ranked)]])
            row.top_tokens, row.auto_label = [f" {word}", word.upper()], f"“{word}”"
            if row.label:
                row.label = f"mentions of {word}"
        body = FeaturePatch(label=HOSTILE, tags=["safety", "deception"], watched=True)
        features.patch(features.get(session, family, "F1"), body)

    def _places(self, session: Any, family: Family) -> None:
        """Where features are active: F1 in new places in v10, others elsewhere, most in the same places."""
        rng, rows = np.random.default_rng(0), session.scalars(select(Verdict).where(Verdict.family_id == family.id))
        newest = checkpoints.get(session, family, f"v{N_CHECKPOINTS - 1}").id
        for row in rows:
            if row.status in (*GONE, Status.EMERGED, Status.RELOCATED):
                continue
            changed = MOVED.get(row.feature) if row.checkpoint_id == newest else None
            row.places, row.gained_share, row.lost_share, row.firing_rate_ratio = changed or ("same", 0.03, 0.02, 1.0)
            for name in ("gained_share", "lost_share", "firing_rate_ratio"):
                value = getattr(row, name)
                setattr(row, f"{name}_lo", 0.9 * value)
                setattr(row, f"{name}_hi", 1.1 * value)
            row.firing_rate_before = 0.01 + 0.001 * rng.random()
            row.kept_amplitude, row.kept_amplitude_lo, row.kept_amplitude_hi = 0.98, 0.95, 1.01
            row.gained_documents, row.places_q_value = 12, 1e-5 if changed else 0.8
        session.flush()
        for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.family_id == family.id)):
            queries.revise(session, checkpoint)
            stored.pack(session, checkpoint.id)

    def _circuits(self, session: Any, family: Family, newest: Checkpoint) -> None:
        """Record the dependencies of F1 in the newest checkpoint and its parent."""
        parent = session.get(Checkpoint, newest.parent_id)
        rng, folds, sources = np.random.default_rng(0), 20, 6
        strengths = [np.array([2.0, 1.5, 1.0, 0.6, 0.0, 0.3]), np.array([0.1, 1.5, 1.0, 0.6, 1.8, 0.3])]
        for checkpoint, strength in zip((parent, newest), strengths, strict=True):
            counts = rng.integers(20, 40, folds).astype(float)
            sums = (strength + 0.15 * rng.standard_normal((folds, sources))) * counts[:, None]
            rest = np.stack([0.1 * counts, 0.2 * counts, 0.0 * counts], 1)
            values, hook = sums.sum(1) + rest.sum(1) - 2.0 * counts, family.hook_points[0]
            artifact = f"{family.id}/dependencies-{checkpoint.name}"
            tensors = {f"numbers.{hook}": np.arange(10, 10 + sources), f"sums.{hook}": sums, f"rest.{hook}": rest}
            factories.save(self.artifacts, artifact, {"counts": counts, "values": values, **tensors})
            words = ([" the", " secret"], np.stack([2.0 * counts, 0.8 * counts], 1))
            graph = figures.graph(load(self.artifacts, artifact), -2.0, words, [(" no", 0.4)], Policy())
            row = {
                "feature": 1, "method": "gradient", "hook_point": family.hook_points[1], "effect": None,
                "n_positions": int(counts.sum()), "artifact": artifact, "graph": graph.model_dump(mode="json"),
            }  # fmt: skip
            dependencies.record(session, self.artifacts, checkpoint_id=checkpoint.id, run_id="run_none", rows=[row])

    def _runs(self, session: Any, family: Family, newest: Checkpoint) -> None:
        now = utcnow()
        fault = {"code": "out-of-memory", "title": "Not enough memory", "detail": "It needs 3.2 GiB, and 1.5 are free."}
        for state, kind, more in (
            ("failed", "onboard", {"error": fault, "attempt": 3, "finished_at": now}),
            ("cancelled", "label", {"attempt": 1, "finished_at": now}),
            ("queued", "calibrate", {}),
        ):
            row = Run(id=f"run_{state}", family_id=family.id, checkpoint_id=newest.id, kind=kind, state=state)
            row.params, row.seconds, row.started_at = {}, {"harvest": 12.5, "extend": 3.1}, now - timedelta(minutes=2)
            for name, value in more.items():
                setattr(row, name, value)
            session.add(row)
        other = Family(
            name="live", **{name: getattr(family, name) for name in ("hook_points", "corpus", "crosscoder", "policy")}
        )
        session.add(other)
        session.flush()
        lease = {"worker": "host-1", "attempt": 1, "lease_until": now + timedelta(hours=1), "started_at": now}
        progress = {"stage": "harvest", "progress": 0.42, "detail": {"positions_per_second": 2104.7}}
        new = {"quality": None, "generation": None}
        waiting = factories.checkpoint(session, other, "v1", state="registered", **new)
        factories.checkpoint(session, other, "v2", parent=waiting, state="failed", **new)
        row = Run(
            id="run_running",
            family_id=other.id,
            checkpoint_id=waiting.id,
            kind="onboard",
            state="running",
            params={},
            **lease,
            **progress,
        )
        session.add(row)
        session.flush()
        for run, outcome in (("run_failed", "failed"), ("run_running", None)):
            tried = {"outcome": outcome, "error": fault if outcome else None, "ended_at": now if outcome else None}
            usage = {"cpu_seconds": 14.2, "peak_memory_bytes": 3 * 2**30}
            session.add(Attempt(run_id=run, number=1, worker="host-1", started_at=now, usage=usage, **tried))
        self._logs(session)
        session.flush()

    def _logs(self, session: Any) -> None:
        failed = session.get_one(Run, "run_failed")
        for attempt in (2, 3):
            failed.attempt = attempt
            session.flush()
            details = {"positions": 40_960, "valid": 40_711, "widths": {"resid_post.4": 576, "resid_post.12": 576}}
            lines: list[tuple[str, str, dict[str, Any]]] = [
                ("info", "claimed", {"kind": "onboard"}),
                ("info", "stage", {"stage": "harvest"}),
                ("info", "activations", details | {"from_before": attempt == 3}),
                ("info", "stage", {"stage": "extend"}),
                ("warning", "missed a beat", {"error": f"the server closed the connection {HOSTILE}"}),
            ]
            silent = ("error", "the worker stopped responding", {"detail": "Worker host-1 did not renew its lease."})
            factories.log(session, failed, [*lines, silent if attempt == 2 else ("error", "failed", FAULT)])
        running = session.get_one(Run, "run_running")
        factories.log(session, running, lines[:2])

    def _alerts(self, session: Any, family: Family, newest: Checkpoint) -> None:
        condition = {"kind": "feature", "feature": "F1"}
        rule, _ = alerts.create_rule(
            session,
            AlertRuleCreate.model_validate({"name": "F1 changes", "family": family.name, "condition": condition}),
        )
        evidence = [{"feature": "F1", "status": "suppressed", "projection_ratio": 0.21, "q_value": 0.0004}]
        for number in range(4):
            row = Alert(id=f"alt_{number}", kind="feature", key=f"{rule.id}:{number}", rule_id=rule.id)
            row.family_id, row.checkpoint_id, row.evidence = family.id, newest.id, evidence
            row.summary = f"{newest.name}: F1 ({HOSTILE}) suppressed"
            session.add(row)
        session.flush()

    def _webhooks(self, session: Any) -> None:
        body = WebhookCreate.model_validate({"url": "https://ci.example.com/featurewatch?a=<b>"})
        webhook, _ = webhooks.create(session, self.settings, body)
        tried = {"at": utcnow().isoformat(), "status": 500, "error": None, "seconds": 0.4, "response": "<h1>no</h1>"}
        for state in ("delivered", "failed", "pending"):
            delivery, _ = webhooks.test(session, webhook)
            delivery.state, delivery.attempts = state, 0 if state == "pending" else 1
            delivery.log = [] if state == "pending" else [tried]
        session.flush()


def fill(settings: Settings, n_features: int = N_FEATURES) -> None:
    """Create the installation's database and artifacts."""
    migrate.upgrade(settings)
    Pages(settings, n_features).fill(N_CHECKPOINTS)
