"""Small drawings that need no script: an interval on a scale, a shade for an activation, a glyph for a status."""

from collections.abc import Sequence

from markupsafe import Markup

from featurewatch.service.verdicts.statuses import Colour, Status

_STATES: dict[str, tuple[str, Colour]] = {status: (status.row.sign, status.row.colour) for status in Status} | {
    "queued": ("○", "grey"), "running": ("◐", "blue"), "cancelling": ("◑", "amber"), "succeeded": ("✓", "green"),
    "failed": ("✕", "red"), "cancelled": ("–", "grey"),
    "registered": ("○", "grey"), "harvested": ("◐", "teal"), "judged": ("✓", "green"),
    "warning": ("!", "amber"), "error": ("✕", "red"),
    "open": ("!", "red"), "acknowledged": ("✓", "blue"), "muted": ("◌", "amber"), "resolved": ("✓", "green"),
    "pending": ("○", "grey"), "delivered": ("✓", "green"),
}  # fmt: skip
"""Each state has a sign, a colour and a word."""
GLYPHS = {state: sign for state, (sign, _) in _STATES.items()}
_WIDTH, _MARGIN, _MOST = 96, 4, 2.5
_SHADES = 8


def colour(state: str) -> str:
    """The class that colours a state; empty where it has no colour."""
    return f"c-{_STATES[state][1]}" if state in _STATES else ""


def bar(value: float | None, ends: Sequence[float | None] | None) -> Markup:
    """A ratio with its interval between 0 and 2.5, over the band of `present`, which the stylesheet draws.

    One shape, since a list has thousands. The figures stand beside it.
    """
    if value is None:
        return Markup("")

    def at(ratio: float | None) -> str:
        return f"{_MARGIN + (_WIDTH - 2 * _MARGIN) * min(max(ratio or 0.0, 0.0), _MOST) / _MOST:.1f}"

    start, end = (at(value), at(value)) if not ends or None in ends else (at(ends[0]), at(ends[1]))
    return Markup(
        '<svg class="bar" width="{w}" height="14" viewBox="0 0 {w} 14" aria-hidden="true" focusable="false">'
        '<path d="M{start} 6.25H{end}v1.5H{start}zM{dot} 4a3 3 0 0 1 0 6a3 3 0 0 1 0-6"/></svg>'
    ).format(w=_WIDTH, start=start, end=end, dot=at(value))


def shade(value: float, most: float) -> str:
    """The class of a token's shade: `s0` (it does not fire) to `s8` (as strongly as anywhere)."""
    share = 0.0 if most <= 0 else min(max(value / most, 0.0), 1.0)
    return f"s{0 if share == 0 else max(1, round(share * _SHADES))}"
