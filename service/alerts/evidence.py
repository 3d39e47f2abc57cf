"""What raises an alert, as JSON: a row for each feature, signature or run, the most important first."""

from typing import TYPE_CHECKING, Any

from featurewatch.service.kit.ids import feature_id

if TYPE_CHECKING:
    from featurewatch.service.models import Feature, Reading, Run, Signature, Verdict

Evidence = list[dict[str, Any]]
MOST_ROWS = 100
"""Rows that an alert keeps."""


def verdict_row(verdict: "Verdict", feature: "Feature") -> dict[str, Any]:
    return {
        **_feature(feature),
        "status": verdict.status,
        "previous_status": verdict.previous_status,
        "change": verdict.change,
        "projection_ratio": verdict.projection_ratio,
        "projection_ratio_ci": _ends(verdict, "projection_ratio"),
        "q_value": verdict.q_value,
        "successors": verdict.successors,
    }


_PLACES = ("firing_rate_ratio", "gained_share", "lost_share", "kept_amplitude")
"""Figures with intervals."""


def places_row(verdict: "Verdict", feature: "Feature", before: str | None) -> dict[str, Any]:
    row = {
        **_feature(feature),
        "places": verdict.places,
        "previous_places": before,
        "status": verdict.status,
        "gained_documents": verdict.gained_documents,
        "places_q_value": verdict.places_q_value,
    }
    for name in _PLACES:
        row |= {name: getattr(verdict, name), f"{name}_ci": _ends(verdict, name)}
    return row


def reading_row(reading: "Reading", signature: "Signature") -> dict[str, Any]:
    names = ("strength_ratio", "strength_ratio_ci", "auroc", "auroc_ci", "reselected_auroc", "reselected_auroc_ci")
    return {
        "signature": signature.name,
        "status": reading.status,
        "previous_status": reading.previous_status,
        **{name: reading.figures[name] for name in names},
        "carriers": [carrier["feature"] for carrier in reading.carriers],
    }


def failure_row(run: "Run", checkpoint: str | None) -> dict[str, Any]:
    return {"run": run.id, "attempt": run.attempt, "checkpoint": checkpoint, "error": run.error}


def _feature(feature: "Feature") -> dict[str, Any]:
    return {
        "feature": feature_id(feature.number),
        "label": feature.label,
        "auto_label": feature.auto_label,
        "top_tokens": feature.top_tokens,
    }


def _ends(verdict: "Verdict", figure: str) -> list[float] | None:
    low, high = getattr(verdict, f"{figure}_lo"), getattr(verdict, f"{figure}_hi")
    return None if low is None or high is None else [low, high]
