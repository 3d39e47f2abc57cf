"""An installation with one of everything: what a fuzz run finds behind the ids that it knows."""

import numpy as np
from sqlalchemy.orm import Session

from featurewatch.service.auth import logic as auth
from featurewatch.service.dependencies import figures
from featurewatch.service.dependencies.store import load
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.crypto import SecretBox
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Family, Lineage, Reading, Run, Signature, Webhook
from featurewatch.service.models.webhook import url_context
from featurewatch.service.recording import dependencies
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.webhooks import logic as webhooks
from tests import factories

HOOK_POINTS = ("resid_post.4", "resid_post.12")
WIDTH = 64
SPARE = 50
"""How many there are of what a request can delete."""
RUNS = (
    "onboard queued",
    "calibrate queued",
    "onboard running",
    "onboard succeeded",
    "onboard failed",
    "label cancelled",
)
RULES, ALERTS, WEBHOOKS, DELIVERIES, KEYS, SIGNATURES = (
    [f"{prefix}_{number}" for number in range(SPARE)] for prefix in ("rul", "alt", "whk", "dlv", "key", "refusal")
)
RUN_IDS = [f"run_{number}" for number in range(len(RUNS))]
SPARE_FAMILIES, SPARE_RUNS = ([f"{prefix}{number}" for number in range(SPARE)] for prefix in ("spare-", "run_spare_"))
"""Families with a checkpoint each, `v1`, and a run that ended; a worker has a run of the one that is not spare."""

VALUES = {
    "family": ["smol"],
    "name": ["v1", "v2", "v3"],
    "checkpoint": ["v1", "v2", "v3"],
    "baseline": ["v1", "v2"],
    "from": ["v1"],
    "to": ["v2"],
    "feature": ["F0", "F1", "F5"],
    "signature": SIGNATURES,
    "run_id": RUN_IDS,
    "calibration": [RUN_IDS[1]],
    "rule_id": RULES,
    "rule": RULES,
    "alert_id": ALERTS,
    "webhook_id": WEBHOOKS,
    "delivery_id": DELIVERIES,
    "key_id": KEYS,
    "actor": KEYS,
    "format": ["json", "markdown", "html"],
    "hook_point": list(HOOK_POINTS),
    "spare_family": SPARE_FAMILIES,
    "spare_run": SPARE_RUNS,
}
"""Values of parameters, by name, that lead to rows."""


def fill(session: Session, artifacts: ArtifactStore, box: SecretBox) -> None:
    """Make the rows and artifacts."""
    family = factories.family(session, hook_points=HOOK_POINTS)
    v1 = factories.checkpoint(session, family, "v1")
    v2 = factories.checkpoint(session, family, "v2", parent=v1)
    v3 = factories.checkpoint(session, family, "v3", parent=v2, state="registered", quality=None, generation=None)
    _features(session, artifacts, family, v1, v2)
    _graphs(session, artifacts, v1, v2)
    _signatures(session, family, v1, v2)
    asked = {"calibrate": {"nulls": ["halves"], "splits": 4, "seed": 0, "finetune": {}}}
    for run_id, told, checkpoint in zip(RUN_IDS, RUNS, (v3, v2, v3, v1, v2, v2), strict=True):
        kind, state = told.split()
        row = Run(id=run_id, family_id=family.id, checkpoint_id=checkpoint.id, kind=kind, state=state)
        row.params, row.seconds = asked.get(kind, {}), {"harvest": 1.5}
        session.add(row)
        session.flush()
        if state != "queued":
            row.attempt = 1
            factories.log(session, row, [("info", "claimed", {"kind": kind}), ("warning", "missed a beat", {})])
    for name, run_id in zip(SPARE_FAMILIES, SPARE_RUNS, strict=True):
        spare = factories.family(session, name)
        checkpoint = factories.checkpoint(session, spare, "v1")
        ended = {"kind": "onboard", "state": "succeeded", "params": {}, "created_at": utcnow().replace(year=2020)}
        session.add(Run(id=run_id, family_id=spare.id, checkpoint_id=checkpoint.id, **ended))
    for rule_id, alert_id in zip(RULES, ALERTS, strict=True):
        session.add(AlertRule(id=rule_id, name=rule_id, family_id=family.id, condition={"kind": "watched"}))
        session.flush()
        alert = Alert(id=alert_id, kind="watched", key=f"watched:{rule_id}", rule_id=rule_id, summary="F0", evidence=[])
        alert.family_id, alert.checkpoint_id = family.id, v2.id
        session.add(alert)
    for webhook_id, delivery_id in zip(WEBHOOKS, DELIVERIES, strict=True):
        webhook = Webhook(id=webhook_id, url="https://ci.example", event_types=[], disabled_reason=None)
        webhook.sealed_url = box.encrypt(b"https://ci.example", context=url_context(webhook_id))
        webhook.secret = box.encrypt(b"whsec_", context=webhook_id)
        session.add(webhook)
        session.flush()
        webhooks.test(session, webhook)[0].id = delivery_id
    for key_id in KEYS:
        auth.create(session, name=key_id, scopes=["read"])[0].id = key_id


def _features(session: Session, artifacts: ArtifactStore, family: Family, v1: Checkpoint, v2: Checkpoint) -> None:
    rows = [factories.feature(session, family, number, v1, tags=["deception"]) for number in (0, 1)]
    new = factories.feature(session, family, 5, v2, origin="emerged", label="a person's")
    for row in rows:
        factories.verdict(session, v1, row, previous_status=None)
    factories.verdict(session, v2, rows[0], "suppressed", places="broadened", **BROADENED)
    successor = {"id": "F5", "kind": "replaced", "cofiring": 0.9}
    factories.verdict(session, v2, rows[1], "replaced", successors=[successor])
    factories.verdict(session, v2, new, "emerged", previous_status=None)
    family.n_features = 6
    for checkpoint in (v1, v2):
        factories.code(session, artifacts, family, checkpoint)
        for hook_point in HOOK_POINTS:
            source = factories.source(session, checkpoint, hook_point, WIDTH)
            source.dictionary = f"{family.id}/dictionary-{checkpoint.name}-{hook_point}"
            factories.save(artifacts, source.dictionary, dictionary(family.n_features))
        level = 1 + 0.002 * np.random.default_rng(0).normal(size=(31, family.n_features))
        for metric in ("level", "reference_level", "strength"):
            factories.measurement(session, checkpoint, metric, level)
        for metric, value in (("readability", 0.9), ("documents", 100)):
            factories.measurement(session, checkpoint, metric, np.full(family.n_features, value))
    links = [(0, 0, "carried"), (1, None, "retired"), (None, 5, "new")]
    for old, new_number, kind in links:
        link = {"generation": 2, "old": old, "new": new_number, "kind": kind, "score": 0.9}
        session.add(Lineage(family_id=family.id, checkpoint_id=v2.id, **link))
    session.flush()


def dictionary(m: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of a source's dictionary, as a worker keeps them."""
    rng = np.random.default_rng(seed)
    shapes = {
        "mean": (WIDTH,), "decoder": (m, WIDTH), "bias": (WIDTH,), "readout": (WIDTH, m), "readout_bias": (m,),
        "reference": (m, WIDTH),
    }  # fmt: skip
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    slope = rng.uniform(0.1, 1, m).astype(np.float32)  # one under 0.25 is not put right to the full
    return tensors | {"rms": np.array(3.0, np.float32), "readout_slope": slope}


def _graphs(session: Session, artifacts: ArtifactStore, v1: Checkpoint, v2: Checkpoint) -> None:
    """Of F5, which F0 and F1 lead to, in both checkpoints."""
    rng, folds = np.random.default_rng(0), 20
    for checkpoint in (v1, v2):
        counts = rng.integers(5, 20, folds).astype(float)
        sums = rng.standard_normal((folds, 2)) * counts[:, None]
        rest = np.stack([0.1 * counts, 0.2 * counts, 0.0 * counts], 1)
        values = sums.sum(1) + rest.sum(1) - 2.0 * counts
        hook, artifact = HOOK_POINTS[0], f"{checkpoint.family_id}/dependencies-{checkpoint.name}"
        tensors = {f"numbers.{hook}": np.arange(2), f"sums.{hook}": sums, f"rest.{hook}": rest}
        factories.save(artifacts, artifact, {"counts": counts, "values": values, **tensors})
        words = ([" stop"], np.stack([2.0 * counts], 1))
        graph = figures.graph(load(artifacts, artifact), -2.0, words, [(" no", 0.4)], Policy())
        row = {
            "feature": 5, "method": "relp", "hook_point": HOOK_POINTS[1], "n_positions": int(counts.sum()),
            "artifact": artifact, "graph": graph.model_dump(mode="json"), "effect": None,
        }  # fmt: skip
        dependencies.record(session, artifacts, checkpoint_id=checkpoint.id, run_id="run_none", rows=[row])


def _signatures(session: Session, family: Family, v1: Checkpoint, v2: Checkpoint) -> None:
    chosen = [{"feature": "F0", "hook_point": HOOK_POINTS[1], "weight": 1.0, "auroc": 0.9, "q_value": 0.001}]
    settings = {"position": "last", "template": True, "hook_points": None, "features": 4, "seed": 0}
    for name in SIGNATURES:
        signature = Signature(family_id=family.id, name=name, description="", settings=settings, contrast="none",
                              n_rows=40, n_positive=20, baseline_id=v1.id, chosen=chosen)  # fmt: skip
        session.add(signature)
        session.flush()
        for checkpoint, status in ((v1, "present"), (v2, "suppressed")):
            session.add(
                Reading(signature_id=signature.id, checkpoint_id=checkpoint.id, status=status, previous_status=None,
                        figures=READING, carriers=chosen, reason=None, activations="none")
            )  # fmt: skip


BROADENED = {
    "places_q_value": 0.001, "firing_rate_before": 0.01, "firing_rate_ratio": 3.0, "firing_rate_ratio_lo": 2.5,
    "firing_rate_ratio_hi": 3.5, "gained_share": 1.9, "gained_share_lo": 1.6, "gained_share_hi": 2.2,
    "lost_share": 0.02, "lost_share_lo": 0.0, "lost_share_hi": 0.05, "kept_amplitude": 0.98,
    "kept_amplitude_lo": 0.95, "kept_amplitude_hi": 1.01, "gained_documents": 40.0,
}  # fmt: skip
"""Figures of a feature that became active in new places."""
READING = {
    "strength": 2.0, "strength_ratio": 1.0, "strength_ratio_ci": [0.9, 1.1], "change": None, "change_ci": None,
    "size_ratio": 1.0, "size_ratio_ci": [0.9, 1.1], "auroc": 0.9, "auroc_ci": [0.85, 0.95], "reselected_auroc": 0.9,
    "reselected_auroc_ci": [0.85, 0.95], "reselected_strength": 1.0, "reselected_before": 1.0, "probe_auroc": 0.9,
    "probe_auroc_ci": [0.8, 1.0], "probe_ratio": 1.0, "probe_ratio_ci": [0.9, 1.1], "random_auroc": 0.5,
    "random_auroc_95": 0.6, "features_read": 1, "rows_judged": 20,
}  # fmt: skip
