"""The report of one checkpoint: what changed, how good the dictionary is on it, which alerts it raised."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import jinja2
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import markdown, queries
from featurewatch.service.dependencies import words as circuits
from featurewatch.service.dependencies.words import CircuitFinding
from featurewatch.service.features import findings, words
from featurewatch.service.features import logic as features
from featurewatch.service.features.queries import Filter
from featurewatch.service.features.schemas import FeatureRow, Summary
from featurewatch.service.features.sorting import order_of
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.problems import NotAcceptableError
from featurewatch.service.lineage import logic as lineage
from featurewatch.service.lineage.schemas import LINK_KINDS, Refit
from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.signatures.words import sentence
from featurewatch.service.verdicts.generations import reference_fvu
from featurewatch.service.verdicts.statuses import CHANGED, Status

LARGEST = 50
Format = Literal["json", "markdown", "html"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "markdown": "text/markdown", "html": "text/html"}


class ReportAlert(BaseModel):
    """An alert that the checkpoint raised."""

    id: str
    rule: str
    state: str
    summary: str
    created_at: datetime


class ReportSignature(BaseModel):
    """A signature in the checkpoint, against its own baseline."""

    name: str
    status: str
    previous_status: str | None = Field(description="At the nearest ancestor that was read.")
    what: str
    strength_ratio: float | None
    strength_ratio_ci: list[float] | None
    auroc: float
    carriers: list[str] = Field(description="Features that separate its classes here.")


class Report(Summary):
    """What changed in one checkpoint against a baseline."""

    family: str
    checkpoint: str
    baseline: str | None = Field(description="Null at the first of a lineage: there is nothing to compare with.")
    judged_at: datetime | None
    generation: int | None
    features: int = Field(description="How many were judged.")
    counts: dict[Status, int]
    new_counts: dict[Status, int] = Field(
        description="How many came to a status here; `counts` has those too that have been gone since an earlier one."
    )
    changes: list[FeatureRow] = Field(description=f"The largest, at most {LARGEST}; `findings` has them in words.")
    refit: Refit | None = Field(description="What became of the features, where its run fitted a new generation.")
    quality: dict[str, Any]
    fitted_fvu: float | None = Field(
        description="FVU of the dictionary on the checkpoint that it was fitted on last; null where that is this one."
    )
    signatures: list[ReportSignature] = Field(description="Those that were read here; each against its own baseline.")
    circuits: list[CircuitFinding] = Field(
        description="Features that are written, but computed from others than at the baseline, or without effect."
    )
    alerts: list[ReportAlert]


def report(
    session: Session,
    artifacts: ArtifactStore,
    family: Family,
    checkpoint: str,
    baseline: str | None,
    wanted: Filter | None = None,
) -> Report:
    """The report of a judged checkpoint against its parent or any other judged one. Raises 404 and 409.

    `wanted` chooses among the changes and findings; counts are of all features.
    """
    asked = features.comparison(session, family, checkpoint, baseline)
    wanted = wanted or Filter()
    counts = features.counts(session, asked)
    places = features.chosen(session, asked, findings.changed(wanted))
    largest = asked.table.numbers[order_of("change", None).first(asked.table, places, None, LARGEST)].tolist()
    told = findings.summary(session, artifacts, asked, counts, wanted, also=largest)
    return Report(
        **dict(told),
        family=family.name,
        checkpoint=asked.checkpoint.name,
        baseline=asked.baseline.name if asked.baseline else None,
        judged_at=asked.checkpoint.judged_at,
        generation=asked.checkpoint.generation,
        features=sum(counts.values()),
        counts={status: counts.get(status, 0) for status in Status},
        new_counts=_new_counts(session, asked),
        changes=[asked.shown[number] for number in largest],
        refit=lineage.refit(session, asked.checkpoint),
        quality=asked.checkpoint.quality or {},
        fitted_fvu=reference_fvu(session, asked.checkpoint),
        signatures=_signatures(session, asked.checkpoint),
        circuits=circuits.findings(session, artifacts, family, asked.checkpoint, asked.baseline),
        alerts=[ReportAlert(**row._mapping) for row in queries.alerts(session, asked.checkpoint.id)],
    )


def _new_counts(session: Session, asked: features.Comparison) -> dict[Status, int]:
    counts = features.counts(session, asked, findings.changed(Filter()))
    return {status: counts.get(status, 0) for status in CHANGED}


def _signatures(session: Session, checkpoint: Checkpoint) -> list[ReportSignature]:
    return [
        ReportSignature(
            name=name,
            status=reading.status,
            previous_status=reading.previous_status,
            what=sentence(baseline, reading),
            strength_ratio=reading.figures.strength_ratio,
            strength_ratio_ci=reading.figures.strength_ratio_ci,
            auroc=reading.figures.auroc,
            carriers=[one.feature for one in reading.carriers],
        )
        for name, baseline, reading in signatures.at_checkpoint(session, checkpoint)
    ]


def choose_format(asked: str | None, accept: str) -> Format:
    """The format of `?format=`, else the first of the Accept header that there is; 406 where there is none."""
    if asked is not None:
        for name, media_type in MEDIA_TYPES.items():
            if asked in (name, media_type) or (asked == "md" and name == "markdown"):
                return name
        raise NotAcceptableError(f"There is no format {asked!r}; there are {', '.join(MEDIA_TYPES)}.")
    wanted = _by_preference(accept)
    for item in wanted:
        for name, media_type in MEDIA_TYPES.items():
            if item in (media_type, "*/*", f"{media_type.partition('/')[0]}/*"):
                return name
    if wanted:
        raise NotAcceptableError(f"The report comes as {', '.join(MEDIA_TYPES.values())}.")
    return "json"


def render(document: Report, form: Format) -> str:
    """The report as Markdown or as an HTML page that needs nothing else."""
    template = "report.md" if form == "markdown" else "report.html"
    return _templates.get_template(template).render(
        report=document,
        figures=_figures(document.quality),
        refit_counts=_refit_counts(document.refit),
        unnamed=document.changed - len(document.findings),
    )


def _refit_counts(refit: Refit | None) -> str:
    """Of the last generation's features and of this one's, for people."""
    if refit is None:
        return ""
    counted = ", ".join(f"{getattr(refit, kind):,} {kind}" for kind in LINK_KINDS)
    return f"Re-fit: {counted}"


def _by_preference(accept: str) -> list[str]:
    parsed: list[tuple[float, int, str]] = []
    for place, part in enumerate(accept.split(",")):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        if name and weight > 0:
            parsed.append((-weight, place, name.lower()))
    return [name for _, _, name in sorted(parsed)]


def _figures(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """The plain numbers of a quality record, for people."""
    return [
        (name.replace("_", " "), _number(value))
        for name, value in quality.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _interval(values: Sequence[float | None] | None) -> str:
    return "" if values is None else f"[{_number(values[0])}, {_number(values[1])}]"


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "web" / "templates"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.globals["STATUSES"] = tuple(Status)
_templates.filters |= {
    "number": _number,
    "interval": _interval,
    "cell": markdown.cell,
    "code": markdown.code,
    "passage": words.passage,
    "named": lambda row: words.name_of(row.id, row.label, row.auto_label),
}
