"""A flow diagram of how features changed between two checkpoints."""

from collections.abc import Mapping, Sequence

from featurewatch.service.features.schemas import FeatureRow
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.web.plots import Plot

_NAMES: dict[str, str] = {Status.PRESENT: "kept", Status.INDETERMINATE: "not judged"}
_NODES = {status: _NAMES.get(status, status.value) for status in Status}
MOST_SUCCESSORS = 12


def flow(
    baseline: str, checkpoint: str, counts: Mapping[Status, int], replaced: Sequence[FeatureRow], link: str
) -> Plot:
    """counts: features by status. replaced: replaced features with their successors. link: prefix of status filters."""
    rows: list[list[str | int | None]] = []
    links: list[str] = []
    for status in Status:
        if counts.get(status):
            start = f"not in {baseline}" if status == Status.EMERGED else baseline
            rows.append([start, _NODES[status], counts[status]])
            links.append(f"{link}status={status}")
    shown = [row for row in replaced if row.successors][:MOST_SUCCESSORS]
    for row in shown:
        names = " + ".join(successor.id for successor in row.successors)
        rows.append([_NODES[Status.REPLACED], f"{row.id} by {names}", 1])
        links.append(f"{link}status=replaced")
    others = counts.get(Status.REPLACED, 0) - len(shown)
    if shown and others > 0:
        rows.append([_NODES[Status.REPLACED], f"{others:,} others", others])
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
        options={"statuses": {word: status for status, word in _NODES.items()}},
        drawn=bool(rows),
    )
