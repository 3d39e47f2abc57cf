"""Small drawings that need no script: ratio bars, activation shades and status symbols."""

from collections.abc import Sequence

from markupsafe import Markup

from featurewatch.service.verdicts.statuses import WORDS, Colour

_STATES: dict[str, tuple[str, Colour]] = {word: (row.sign, row.colour) for word, row in WORDS.items()} | {
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
    """A ratio and its interval on a scale from 0 to 2.5; the stylesheet draws the `present` band behind it.

    A single path, since a list has thousands of them.
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


def shade(value: float, largest: float) -> str:
    """CSS class of a token's shade: `s0` (inactive) to `s8` (the largest activation)."""
    share = 0.0 if largest <= 0 else min(max(value / largest, 0.0), 1.0)
    return f"s{0 if share == 0 else max(1, round(share * _SHADES))}"
