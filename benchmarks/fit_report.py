"""Reports of `benchmarks.fit`: a table, a plot and the goals, for the terminal and docs/benchmarks.md."""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fit_rounds import OURS, OURS_FLOAT32

BEGIN, END = "<!-- fit -->", "<!-- /fit -->"
FASTER = {"dictionary-learning": 5.0, "eai-sparsify": 2.5, "sae-lens": 6.0}
"""Minimum ratio of our positions per second to the peer's"""
STEP_OVER_PRODUCT, FVU, DEAD = 1.6, 0.15, 0.01
DEFAULT = {"widths": [256, 256], "latents": 2048, "k": 32, "batch": 2048, "steps": 500, "positions": 200_000}
"""The configuration of the goal for FVU"""

Result = dict[str, Any]


class Goal(NamedTuple):
    """One line of the goals."""

    text: str
    found: str
    met: bool


def goals(result: Result) -> Iterator[Goal]:
    """The goals of a run. There are none for GPUs yet."""
    trainers, configuration = result["trainers"], result["configuration"]
    ours = trainers[OURS]
    if configuration["device"] == "cpu":
        for name, least in FASTER.items():
            if name in trainers:
                found = trainers[name]["ours_over_it"]["median"]
                yield Goal(f"at least {least:g} x the positions per second of {name}", f"{found:.2f} x", found >= least)
        found = ours["step_over_product"]["median"]
        text = f"a step takes at most {STEP_OVER_PRODUCT:g} x the encoder's product alone"
        yield Goal(text, f"{found:.2f} x", found <= STEP_OVER_PRODUCT)
    if configuration["steps"] < DEFAULT["steps"]:
        return  # goals are set for a full run only
    if all(configuration[name] == value for name, value in DEFAULT.items()):
        worst = max(ours["fvu"])
        yield Goal(f"FVU of every source at most {FVU:g}", f"{worst:.3f}", worst <= FVU)
    peers = [trainer for name, trainer in trainers.items() if name not in (OURS, OURS_FLOAT32)]
    if peers:
        lead = min(min(other / own for other, own in zip(p["fvu"], ours["fvu"], strict=True)) for p in peers)
        yield Goal("FVU of every source below that of every peer", f"the best peer's is {lead:.2f} x ours", lead > 1)
    yield Goal(f"dead latents under {DEAD:.0%}", f"{ours['dead']:.2%}", ours["dead"] < DEAD)


def rows(result: Result) -> list[list[str]]:
    """The rows of the table, header first and fastest trainer on top."""
    head = ["trainer", "ms per step", "positions/s", "ours is faster", "step / product", "FVU per source", "L0", "dead"]
    table = [[*head, "peak memory"]]
    for name, trainer in sorted(result["trainers"].items(), key=lambda item: item[1]["ms"]):
        ratio, over = trainer["ours_over_it"], trainer["step_over_product"]["median"]
        low, high = f"{min(trainer['fvu']):.3f}", f"{max(trainer['fvu']):.3f}"
        table.append(
            [
                f"{trainer['package']} ({trainer['what']})",
                f"{trainer['ms']:.1f}",
                f"{trainer['positions_per_second']:,.0f}",
                "" if name == OURS else f"{ratio['median']:.1f} x ({ratio['low']:.1f} - {ratio['high']:.1f})",
                f"{over:.2f}",
                low if low == high else f"{low} - {high}",
                f"{trainer['l0']:.1f}",
                f"{trainer['dead']:.1%}",
                f"{trainer['memory']:,.0f} MB",
            ]
        )
    return [*table, ["the encoder's product alone", f"{result['product']['ms']:.1f}", *[""] * (len(head) - 1)]]


def markdown(table: list[list[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are right-aligned."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def goals_table(result: Result) -> str:
    """The goals as a Markdown table."""
    found = [[goal.text, goal.found, "yes" if goal.met else "no"] for goal in goals(result)]
    return markdown([["goal", "measured", "met"], *found])


def title(result: Result) -> str:
    """Sizes in words."""
    c = result["configuration"]
    where = "GPU" if c["device"] != "cpu" else f"{c['threads']} threads"
    sizes = f"{len(c['widths'])} sources x {c['widths'][0]}, {c['latents']:,} latents, k {c['k']}, batch {c['batch']:,}"
    return f"{sizes}, {c['precision']}, {where}"


def summary(result: Result) -> str:
    """For the terminal."""
    c = result["configuration"]
    words = "FVU: share of the variance that is not reconstructed. L0: active latents per position. Lower is better."
    return (
        f"\n{title(result)}: after {c['steps']} steps\n\n{markdown(rows(result))}\n\n{words}\n\n{goals_table(result)}\n"
    )


def key(result: Result) -> str:
    """Name of a configuration's files."""
    c = result["configuration"]
    parts = [f"{len(c['widths'])}x{c['widths'][0]}", str(c["latents"]), f"k{c['k']}", c["device"], c["precision"]]
    return "fit-" + "-".join(parts)


def write_page(result: Result, docs: Path) -> None:
    """Write the raw figures and plot of a run, and the page's section on all runs with figures."""
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{key(result)}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / f"{key(result)}.svg").write_text(plot(result), encoding="utf-8")
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("fit-*.json")]
    runs.sort(key=lambda run: (run["configuration"]["device"], run["configuration"]["latents"], key(run)))
    part = "\n\n".join(section(run) for run in runs)
    page = docs / "benchmarks.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{part}\n{END}{after}", encoding="utf-8")


def section(result: Result) -> str:
    """The page's section on a run."""
    c, m = result["configuration"], result["machine"]
    where = m["gpu"] if c["device"] != "cpu" else f"{m['processor']}, {c['threads']} of {m['cores']} cores"
    facts = f"{c['steps']} steps each, {c['rounds']} rounds, seed {c['seed']}; {where}, torch {m['torch']}."
    image = f"![Positions per second and FVU of each trainer](benchmarks/{key(result)}.svg)"
    raw = f"Every round's times: [{key(result)}.json](benchmarks/{key(result)}.json)."
    rates = ", ".join(f"{name} {trainer['rate']:g}" for name, trainer in result["trainers"].items())
    facts = f"{facts} Learning rates: {rates}."
    parts = [f"### {title(result)}", facts, markdown(rows(result)), image, goals_table(result), raw]
    return "\n\n".join(parts)


def plot(result: Result) -> str:
    """Bars of speed and FVU, one row for each trainer, as SVG that reads on light and dark pages."""
    trainers = sorted(result["trainers"].items(), key=lambda item: item[1]["ms"])
    fastest = max(trainer["positions_per_second"] for _, trainer in trainers)
    worst = max(max(trainer["fvu"]) for _, trainer in trainers)
    lines = [
        _text(190, 22, "positions per second (more is better)"),
        _text(540, 22, "FVU, worst source (less is better)"),
    ]
    for place, (name, trainer) in enumerate(trainers):
        y, colour = 40 + 34 * place, "#2f7ed8" if name in (OURS, OURS_FLOAT32) else "#9aa5b1"
        speed, fvu = trainer["positions_per_second"], max(trainer["fvu"])
        lines.append(_text(180, y + 16, name, "end"))
        lines += _bar(190, y, 250 * speed / fastest, colour, f"{speed:,.0f}")
        lines += _bar(540, y, 160 * fvu / worst, colour, f"{fvu:.3f}")
    height = 50 + 34 * len(trainers)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="770" height="{height}" viewBox="0 0 770 {height}" '
        f'font-family="sans-serif" font-size="13" fill="#6b7280">\n' + "\n".join(lines) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, colour: str, label: str) -> list[str]:
    bar = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1.0):.1f}" height="22" rx="3" fill="{colour}"/>'
    return [bar, _text(x + width + 6, y + 16, label)]
