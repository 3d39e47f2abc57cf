"""A flow diagram of how features changed between two checkpoints."""

from collections.abc import Mapping, Sequence

from featurewatch.service.features.schemas import STATUSES, FeatureRow, Status
from featurewatch.service.web.plots import Plot

_WORDS: dict[Status, str] = {
    "present": "kept", "suppressed": "suppressed", "amplified": "amplified", "absent": "absent",
    "relocated": "relocated", "replaced": "replaced", "emerged": "emerged", "indeterminate": "not judged",
}  # fmt: skip
MOST_SUCCESSORS = 12


def flow(
    baseline: str, checkpoint: str, counts: Mapping[Status, int], replaced: Sequence[FeatureRow], link: str
) -> Plot:
    """counts: features by status. replaced: replaced features with their successors. link: prefix of status filters."""
    rows: list[list[str | int | None]] = []
    links: list[str] = []
    for status in STATUSES:
        if counts.get(status):
            start = f"not in {baseline}" if status == "emerged" else baseline
            rows.append([start, _WORDS[status], counts[status]])
            links.append(f"{link}status={status}")
    shown = [row for row in replaced if row.successors][:MOST_SUCCESSORS]
    for row in shown:
        names = " + ".join(successor.id for successor in row.successors)
        rows.append([_WORDS["replaced"], f"{row.id} by {names}", 1])
        links.append(f"{link}status=replaced")
    if shown and counts.get("replaced", 0) > len(shown):
        rows.append(
            [_WORDS["replaced"], f"{counts['replaced'] - len(shown):,} others", counts["replaced"] - len(shown)]
        )
        links.append(f"{link}status=replaced")
    return Plot(
        "flow",
        "flow",
        f"How features changed from {baseline} to {checkpoint}",
        ["from", "to", "features"],
        rows,
        note="Widths scale with the square root of the count, so that a few changed features remain visible beside "
        "thousands of unchanged ones.",
        links=links,
        options={"statuses": {word: status for status, word in _WORDS.items()}},
        drawn=bool(rows),
    )
