"""Describes a signature's reading in words."""

from featurewatch.service.signatures.schemas import Interval, ReadingView


def sentence(baseline: str, reading: ReadingView) -> str:
    """The main figures in one line: `38% (34 to 42%) of its strength at v1; AUROC 1.00 (0.99 to 1.00)`."""
    figures = reading.figures
    if reading.reason is not None and figures.strength_ratio is None:
        return reading.reason
    parts = []
    if figures.strength_ratio is not None and reading.checkpoint != baseline:
        parts.append(f"{_percent(figures.strength_ratio, figures.strength_ratio_ci)} of its strength at {baseline}")
    parts.append(f"AUROC {_plain(figures.auroc, figures.auroc_ci)}")
    if reading.status in ("replaced", "absent"):
        parts.append(f"AUROC of reselected features {_plain(figures.reselected_auroc, figures.reselected_auroc_ci)}")
    if figures.auroc <= figures.random_auroc_95:
        parts.append("random features separate the classes as well, so rely on the strength")
    if reading.reason is not None:
        parts.append(reading.reason)
    return "; ".join(parts)


def _percent(value: float, ci: Interval | None) -> str:
    percent = f"{100 * value:.0f}%"
    return percent if ci is None else f"{percent} ({100 * ci[0]:.0f} to {100 * ci[1]:.0f}%)"


def _plain(value: float, ci: Interval) -> str:
    return f"{value:.2f} ({ci[0]:.2f} to {ci[1]:.2f})"
