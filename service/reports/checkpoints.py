"""The report on one checkpoint: what changed, the quality of the dictionary on it, and the alerts it raised."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import jinja2
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import queries
from featurewatch.service.dependencies import describe as dependencies
from featurewatch.service.dependencies.describe import DependencyFinding
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
from featurewatch.service.reports import markdown
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.signatures.describe import sentence
from featurewatch.service.verdicts.generations import reference_fvu
from featurewatch.service.verdicts.statuses import CHANGED, PLACES_CHANGED, Places, Status

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
    """A signature in the checkpoint, compared with its own baseline."""

    name: str
    status: str
    previous_status: str | None = Field(description="Status at the nearest ancestor in which it was read.")
    what: str = Field(description="The reading in words.")
    strength_ratio: float | None
    strength_ratio_ci: list[float] | None
    auroc: float
    carriers: list[str] = Field(description="Features that separate its classes in this checkpoint.")


class Report(Summary):
    """What changed in one checkpoint compared with a baseline."""

    family: str
    checkpoint: str
    baseline: str | None = Field(description="Null for the first checkpoint of a lineage.")
    judged_at: datetime | None
    generation: int | None
    features: int = Field(description="Number of features judged.")
    counts: dict[Status, int] = Field(description="Number of features by status.")
    places: dict[Places, int] = Field(description="Features by where they are active, compared with the baseline.")
    new_counts: dict[Status, int] = Field(
        description="Features that entered the status in this checkpoint. `counts` also includes those that had it "
        "before."
    )
    changes: list[FeatureRow] = Field(
        description=f"The largest changes, at most {LARGEST}. `findings` describes them in words."
    )
    refit: Refit | None = Field(description="How the features carried over, if this run re-fitted the dictionary.")
    quality: dict[str, Any] = Field(description="Quality of the dictionary on this checkpoint, e.g. FVU and L0.")
    fitted_fvu: float | None = Field(
        description="FVU on the checkpoint that the dictionary was last fitted on. Null if that is this checkpoint."
    )
    signatures: list[ReportSignature] = Field(
        description="Signatures read in this checkpoint, each compared with its own baseline."
    )
    circuits: list[DependencyFinding] = Field(
        description="Features that are written but computed from different features than at the baseline, or that "
        "have no effect."
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
    """The report on a judged checkpoint against its parent or any other judged checkpoint. Raises 404 and 409.

    `wanted` filters the changes and findings; counts cover all features.
    """
    comparison = features.comparison(session, family, checkpoint, baseline)
    wanted = wanted or Filter()
    counts = features.counts(session, comparison)
    entered = features.counts(session, comparison, findings.changed(Filter()))
    places = features.chosen(session, comparison, findings.changed(wanted))
    order = order_of("change", None).first(comparison.table, places, None, LARGEST)
    largest = comparison.table.numbers[order].tolist()
    summary = findings.summary(session, artifacts, comparison, counts, wanted, also=largest)
    row = comparison.checkpoint
    return Report(
        **dict(summary),
        family=family.name,
        checkpoint=row.name,
        baseline=comparison.baseline.name if comparison.baseline else None,
        judged_at=row.judged_at,
        generation=row.generation,
        features=sum(counts.values()),
        counts={status: counts.get(status, 0) for status in Status},
        places=features.place_counts(comparison),
        new_counts={status: entered.get(status, 0) for status in CHANGED},
        changes=[comparison.shown[number] for number in largest],
        refit=lineage.refit(session, row),
        quality=row.quality or {},
        fitted_fvu=reference_fvu(session, row),
        signatures=_signatures(session, row),
        circuits=dependencies.findings(session, artifacts, family, row, comparison.baseline),
        alerts=[ReportAlert(**alert._mapping) for alert in queries.alerts(session, row.id)],
    )


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
            carriers=[carrier.feature for carrier in reading.carriers],
        )
        for name, baseline, reading in signatures.at_checkpoint(session, checkpoint)
    ]


def choose_format(parameter: str | None, accept: str) -> Format:
    """The format that `?format=` names, else the best match of the Accept header. Raises 406 if there is none."""
    if parameter is not None:
        for name, media_type in MEDIA_TYPES.items():
            if parameter in (name, media_type) or (parameter == "md" and name == "markdown"):
                return name
        raise NotAcceptableError(f"Unknown format {parameter!r}. Available formats: {', '.join(MEDIA_TYPES)}.")
    wanted = _by_preference(accept)
    for item in wanted:
        for name, media_type in MEDIA_TYPES.items():
            if item in (media_type, "*/*", f"{media_type.partition('/')[0]}/*"):
                return name
    if wanted:
        raise NotAcceptableError(f"The report is available as {', '.join(MEDIA_TYPES.values())}.")
    return "json"


def render(document: Report, form: Format) -> str:
    """The report as Markdown or as a self-contained HTML page."""
    template = "report.md" if form == "markdown" else "report.html"
    return _templates.get_template(template).render(
        report=document,
        figures=_figures(document.quality),
        refit_counts=_refit_counts(document.refit),
        unnamed=document.changed - len(document.findings),
    )


def _refit_counts(refit: Refit | None) -> str:
    """The features of both generations, counted by kind of link, in words."""
    if refit is None:
        return ""
    counts = ", ".join(f"{getattr(refit, kind):,} {kind}" for kind in LINK_KINDS)
    return f"Re-fit: {counts}"


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
    """(label, formatted value) of the numbers in a quality record."""
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
_templates.globals |= {"STATUSES": tuple(Status), "PLACES_CHANGED": PLACES_CHANGED}
_templates.filters |= {
    "number": _number,
    "interval": _interval,
    "cell": markdown.cell,
    "code": markdown.code,
    "passage": words.passage,
    "named": lambda row: words.name_of(row.id, row.label, row.auto_label),
}
