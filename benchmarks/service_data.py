"""A large family in a database, written the way workers write it: the data of `benchmarks.service`.

Checkpoints form a chain with a few branches. What a feature writes in each of them is planted, with noise per document;
the verdict rule judges it, and `service.recording.verdicts.record` stores the result. Of the code only the examples are
stored, beside an otherwise empty sparse matrix.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sqlalchemy.orm import Session

from featurewatch.service.alerts import logic as alerts
from featurewatch.service.alerts.schemas import AlertRuleCreate
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints.schemas import CheckpointIn
from featurewatch.service.config import Settings
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.features import logic as features
from featurewatch.service.features.schemas import FeaturePatch
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.recording import signatures as readings
from featurewatch.service.recording import verdicts
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.states import RunState
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.signatures.schemas import SignatureIn
from featurewatch.service.verdicts.judge import Evidence, Floats, Successor, judge
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import GONE, Status

FAMILY, WORKER, LEASE_S = "large", "benchmark", 600.0
FOLDS, EXAMPLES = 20, 16
DOCUMENTS, TOKENS, LETTERS = 10_000, 100, 5
"""Of the probe corpus: documents, positions of each, letters of a token."""
POSITIONS = DOCUMENTS * TOKENS
NEW = 16
"""Features that an extension appends."""
EVENTS = {"suppressed": 2e-3, "amplified": 5e-4, "absent": 1e-3, "replaced": 3e-4, "relocated": 2e-4}
"""Event -> share of the features that it happens to in one checkpoint."""
FACTORS = {"suppressed": 0.25, "amplified": 3.0, "absent": 0.0, "replaced": 0.0, "relocated": 0.05}
WATCHED, TAGGED, LABELLED = 1 / 500, 1 / 100, 1 / 20
SIGNATURES = 3


def parent_of(number: int) -> int | None:
    """A checkpoint's parent: the previous one, except that every tenth starts a branch five checkpoints back."""
    if number == 0:
        return None
    return number - 6 if number % 10 == 9 else number - 1 - (number % 10 == 0)


@dataclass
class State:
    """What features write in a checkpoint, in the order of `numbers`."""

    numbers: NDArray[np.int64]
    level: Floats
    """[m] share of what each wrote at first"""
    reference: Floats
    """[K + 1, m] what the next checkpoint's are held against, with replicates"""
    gone: NDArray[np.bool_]


@dataclass
class Lineage:
    """All checkpoints of a family, drawn one after the other."""

    n_first: int
    """Features of the first checkpoint."""
    hook_points: list[str]
    seed: int
    states: dict[int, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        most = 2 * self.n_first + 10_000
        self.noise = np.exp(rng.normal(np.log(0.04), 0.7, most)).astype(np.float32)
        self.firings = np.exp(rng.normal(np.log(400), 1.4, most)).astype(np.int64)
        self.size = np.exp(rng.normal(0, 0.5, most)).astype(np.float32)

    def outcome(self, place: int, parent: int | None, first: int, depth: int) -> verdicts.Outcome:
        """What a run would find at checkpoint `place`. first: the family's next feature number."""
        rng = np.random.default_rng([self.seed, place])
        before = self.states[parent] if parent is not None else None
        old = before.numbers if before else np.arange(0)
        n_new = NEW if before else self.n_first
        numbers = np.concatenate([old, np.arange(first, first + n_new)])
        born, m = numbers >= first, len(numbers)
        emerged = born & (before is not None)
        level = np.ones(m, dtype=np.float32)
        event = np.full(m, "", dtype=object)
        gone = np.zeros(m, dtype=bool)
        if before:
            gone[: len(old)] = before.gone
            level[: len(old)] = before.level * np.exp(rng.normal(0, 0.02, len(old)))
            for name, share in EVENTS.items():
                event[(rng.random(m) < share) & ~gone & ~born] = name
            for name, factor in FACTORS.items():
                level[event == name] *= factor
        size = level * self._replicates(rng, numbers)
        orthogonal = (0.05 * np.ones_like(size)).astype(np.float32)
        orthogonal[:, event == "relocated"] = 1.0
        reference = size.copy()
        if before:
            reference[:, : len(old)] = before.reference
        strength = np.hypot(size, orthogonal * reference)
        with np.errstate(invalid="ignore"):  # what was nothing, and fires too rarely to be judged, is nothing still
            projection, ratio = size / reference, strength / reference
        evidence = Evidence(
            projection=projection,
            strength_ratio=ratio,
            orthogonal=orthogonal,
            firings=self.firings[numbers],
            documents=np.minimum(self.firings[numbers], DOCUMENTS),
            readability=np.where(event == "absent", 0.1, 0.85).astype(np.float32),
            readability_before=np.full(m, 0.85, dtype=np.float32),
            baseline_z=np.where(emerged, 0, 1 / self.noise[numbers]).astype(np.float32),
            there_before=~gone,
            born_here=emerged,
            successors=_successors(np.flatnonzero(event == "replaced"), np.flatnonzero(born)),
            comparison=max(1, depth),
        )
        judgement = judge(evidence, Policy())
        lost = np.isin([str(status) for status in judgement.status], [str(status) for status in GONE])
        moved = np.array([status == Status.RELOCATED for status in judgement.status])
        self.states[place] = State(
            numbers,
            np.where(moved, 1, level).astype(np.float32),
            np.where(lost, reference, np.where(moved, strength, size)).astype(np.float32),
            lost,
        )
        return self._found(rng, place, first, numbers, born, evidence, judgement, strength * self.size[numbers])

    def _replicates(self, rng: np.random.Generator, numbers: NDArray[np.int64]) -> Floats:
        """[K + 1, m] around 1, with a jackknife error of each feature's own noise."""
        noise = rng.standard_normal((FOLDS, len(numbers)), dtype=np.float32) * self.noise[numbers] / FOLDS**0.5
        estimate = 1 + self.noise[numbers] * rng.standard_normal(len(numbers), dtype=np.float32)
        return np.concatenate([estimate[None], estimate + noise - noise.mean(0)])

    def _found(
        self, rng: np.random.Generator, place: int, first: int, numbers: NDArray[np.int64], born: NDArray[np.bool_],
        evidence: Evidence, judgement: Any, strength: Floats,
    ) -> verdicts.Outcome:  # fmt: skip
        m, new = len(numbers), numbers[born].tolist()
        tokens = [[_word(rng) for _ in range(5)] for _ in new]
        origin = "emerged" if place else "fitted"
        statuses = dict(Counter(str(status) for status in judgement.status))
        metrics = {
            "projection": evidence.projection[0],
            "projection_reach": np.full(m, 0.03, dtype=np.float32),
            "strength": strength[0],
            "strength_ratio": evidence.strength_ratio[0],
            "orthogonal": evidence.orthogonal[0],
            "cosine": np.full(m, 0.98, dtype=np.float32),
            "readability": evidence.readability,
        }
        return verdicts.Outcome(
            generation=1,
            positions={},
            first_number=first,
            numbers=numbers,
            origins=dict.fromkeys(new, origin),
            top_tokens=tokens,
            logits=[{"promoted": [[word, 1.5] for word in words], "demoted": []} for words in tokens],
            code="",
            examples="",
            n_positions=POSITIONS,
            sources=[
                verdicts.SourceOutcome(hook, 4096, {"fvu": 0.2, "rms": 1.0, "paired_with": hook}, None, "")
                for hook in self.hook_points
            ],
            quality={"fvu": 0.2, "l0": 32.0, "dead_share": 0.0, "valid_share": 0.99, "statuses": statuses,
                     "size_factor": round(judgement.size_factor, 5), "fit": "first" if place == 0 else "extend"},
            evidence=evidence,
            judgement=judgement,
            strength=strength.astype(np.float32),
            cosine=metrics["cosine"],
            per_hook=dict.fromkeys(self.hook_points, metrics),
            fitted=place == 0,
        )  # fmt: skip


def _successors(replaced: NDArray[np.int64], born: NDArray[np.int64]) -> dict[int, list[Successor]]:
    pairs = zip(replaced.tolist(), born.tolist(), strict=False)
    return {column: [Successor(one, "replaced", cofiring=0.9, strength=1.0)] for column, one in pairs}


def _word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), LETTERS - 1))


class Filler:
    """Writes a lineage into an installation, as requests and workers do."""

    def __init__(self, settings: Settings, lineage: Lineage) -> None:
        self.settings, self.lineage = settings, lineage
        self.artifacts = ArtifactStore(settings.artifacts_uri, settings.cache_dir / "artifacts")
        self.positions: dict[str, Any] = {}

    def fill(self, n_checkpoints: int) -> None:
        """The family with its judged checkpoints, rules, marks and signatures."""
        with self.database() as database:
            with database.write() as session:
                body = FamilyIn(name=FAMILY, hook_points=self.lineage.hook_points)
                family, _ = families.create(session, self.settings, body)
                self.positions = self.corpus(family.id)
                for condition in (
                    {"kind": "watched"}, {"kind": "tag", "tag": "safety"},
                    {"kind": "status_count", "status": "suppressed", "at_least": 50},
                ):  # fmt: skip
                    rule = {"name": condition["kind"], "family": FAMILY, "condition": condition}
                    alerts.create_rule(session, AlertRuleCreate.model_validate(rule))
            for place in range(n_checkpoints):
                self.judge(database, place, self.begin(database, place))
                if place == 0:
                    self._mark(database)
            for number in range(SIGNATURES):
                self._sign(database, number)

    @contextmanager
    def database(self) -> Iterator[Database]:
        """The installation's database."""
        database = Database(self.settings.resolved_database_url)
        yield database
        database.close()

    def begin(self, database: Database, place: int) -> tuple[str, int]:
        """Register a checkpoint and take its run; (id, attempt)."""
        parent = parent_of(place)
        with database.write() as session:
            body = CheckpointIn(
                name=f"v{place}", uri=f"hf://org/model@v{place}", parent=None if parent is None else f"v{parent}"
            )
            _, run, _ = checkpoints.register(session, self.settings, families.get(session, FAMILY), body)
            return self._take(session, run.id)

    def judge(self, database: Database, place: int, held: tuple[str, int]) -> None:
        """Find the verdicts of a checkpoint and write them, with the end of its run."""
        parent, depth = parent_of(place), 0
        above = parent
        while above is not None:
            depth, above = depth + 1, parent_of(above)
        with database.read() as session:
            family = families.get(session, FAMILY)
            checkpoint = checkpoints.get(session, family, f"v{place}")
            outcome = self.lineage.outcome(place, parent, family.n_features, depth)
        code, examples = self.keep(family.id, checkpoint.id, place, outcome)
        outcome = replace(outcome, code=code, examples=examples, positions=self.positions)
        with database.write() as session:
            result = verdicts.record(session, checkpoint_id=checkpoint.id, run_id=held[0], outcome=outcome)
            runs.finish(session, run_id=held[0], attempt=held[1], state=RunState.SUCCEEDED, result=result)

    def keep(self, family_id: str, checkpoint_id: str, place: int, outcome: verdicts.Outcome) -> tuple[str, str]:
        """Names of the code's artifact and of its examples."""
        code, examples = (f"{family_id}/{kind}-{checkpoint_id}.safetensors" for kind in ("code", "examples"))
        rng, m = np.random.default_rng(place), len(outcome.numbers)
        # Steps of at least one, with room for all of them: no feature fires twice at a position.
        steps = rng.integers(1, POSITIONS // EXAMPLES, (m, EXAMPLES))
        places, column = steps.cumsum(1), np.repeat(np.arange(m, dtype=np.int32), EXAMPLES)
        values = -np.sort(-rng.lognormal(1, 0.3, places.shape).astype(np.float32), axis=1)
        row = places.ravel()
        order = np.argsort(row, kind="stable")  # columns ascend already
        indptr = np.concatenate([[0], np.bincount(row, minlength=POSITIONS).cumsum()])
        csr = {"indptr": indptr, "indices": column[order], "values": values.ravel()[order]}
        with self.artifacts.create(code) as path:
            save_file({**csr, "feature_numbers": outcome.numbers}, path)
        with self.artifacts.create(examples) as path:
            save_file({"positions": places, "values": values}, path)
        return code, examples

    def _take(self, session: Session, run_id: str) -> tuple[str, int]:
        run = runs.claim(session, worker=WORKER, lease_seconds=LEASE_S, run_id=run_id)
        assert run is not None
        return run.id, run.attempt

    def corpus(self, family_id: str) -> dict[str, Any]:
        """The probe corpus: what a family's `positions` are."""
        rng = np.random.default_rng(0)
        letters = rng.integers(ord("a"), ord("z") + 1, (DOCUMENTS, TOKENS, LETTERS), dtype=np.uint8)
        letters[..., -1] = ord(" ")
        positions, documents = f"{family_id}/positions.safetensors", f"{family_id}/documents.jsonl"
        with self.artifacts.create(documents) as path:
            lines = (f'{{"id": {number}, "text": "{row.tobytes().decode()}"}}\n' for number, row in enumerate(letters))
            Path(path).write_text("".join(lines), encoding="utf-8")
        start = np.tile(np.arange(TOKENS) * LETTERS, DOCUMENTS)
        with self.artifacts.create(positions) as path:
            document = np.repeat(np.arange(DOCUMENTS), TOKENS)
            save_file({"document": document, "start": start, "end": start + LETTERS}, path)
        return {"digest": "0", "count": POSITIONS, "artifact": positions, "documents": documents}

    def _mark(self, database: Database) -> None:
        """User data of features: some are watched, tagged or labelled."""
        rng = np.random.default_rng(1)
        with database.write() as session:
            family = families.get(session, FAMILY)
            draws = rng.random((family.n_features, 3)) < (WATCHED, TAGGED, LABELLED)
            for number in np.flatnonzero(draws.any(1)).tolist():
                said: dict[str, Any] = {"watched": True} if draws[number, 0] else {}
                said |= {"tags": ["safety"]} if draws[number, 1] else {}
                said |= {"label": f"concept {number}"} if draws[number, 2] else {}
                features.patch(features.get(session, family, feature_id(number)), FeaturePatch.model_validate(said))

    def _sign(self, database: Database, number: int) -> None:
        """A signature that is read in every checkpoint."""
        rows = [{"text": f"row {row}", "label": row % 2 == 0} for row in range(64)]
        with database.write() as session:
            body = SignatureIn.model_validate({"name": f"concept-{number}", "rows": rows, "baseline": "v0"})
            family = families.get(session, FAMILY)
            signature, queued = signatures.create(session, self.settings, self.artifacts, family, body)
        chosen = [
            {"feature": feature_id(number * 100 + one), "hook_point": self.lineage.hook_points[0], "weight": 1.0,
             "auroc": 0.9, "q_value": 1e-6} for one in range(16)
        ]  # fmt: skip
        for run, name in queued:
            with database.write() as session:
                checkpoint = checkpoints.get(session, families.get(session, FAMILY), name)
                found = readings.SignatureResult(
                    signature.id, "present", None, FIGURES, chosen, chosen if name == "v0" else None, ""
                )
                held = self._take(session, run.id)
                result = readings.record(session, checkpoint.id, [found])
                runs.finish(session, run_id=held[0], attempt=held[1], state=RunState.SUCCEEDED, result=result)


FIGURES: dict[str, Any] = {
    "strength": 2.0, "strength_ratio": 1.0, "strength_ratio_ci": [0.9, 1.1], "change": 1.0, "change_ci": [0.9, 1.1],
    "size_ratio": 1.0, "size_ratio_ci": [0.9, 1.1], "auroc": 0.95, "auroc_ci": [0.9, 0.99], "reselected_auroc": 0.95,
    "reselected_auroc_ci": [0.9, 0.99], "reselected_strength": 1.0, "reselected_before": 1.0, "probe_auroc": 0.97,
    "probe_auroc_ci": [0.93, 1.0], "probe_ratio": 1.0, "probe_ratio_ci": [0.9, 1.1], "random_auroc": 0.6,
    "random_auroc_95": 0.7, "features_read": 16, "rows_judged": 32,
}  # fmt: skip
