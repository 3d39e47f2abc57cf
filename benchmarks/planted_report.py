"""The report of `benchmarks.planted`: docs/planted.md."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from textwrap import wrap
from typing import Any

import numpy as np

from benchmarks.planted_score import CLASSES
from benchmarks.planted_shape import AMPLIFIED, PLACES, SCENARIOS, Shape, scenario

Result = dict[str, Any]
"""The result of one lineage: a line of the benchmark's output."""

WHAT = {
    "plain": "features suppressed to 0.1 to 0.4 of their size, removed, born; directions turn by 4 degrees on average "
    "from one checkpoint to the next, each in its own direction; scale and mean drift; topics make features fire "
    "together",
    "kinds": "the same, and features amplified 2.5 to 4 times, relocated to an orthogonal direction, replaced, split, "
    "merged, and written by a single checkpoint (at 0.5% of the positions)",
    "rotating": "all kinds of events while everything rotates by 10 degrees a checkpoint",
    "replaced-basis": "all kinds; from v4 on everything is seen through a random orthogonal map",
    "widths": "all kinds; from v4 on 384 dimensions instead of 256",
    "sinks": "all kinds; 3 positions in 1,000 have 30 to 50 times the median norm, along one direction",
    "hierarchy": "all kinds; 48 features fire only where another one does",
    "rare": "all kinds; rates from 0.05% instead of 0.2%",
    "incomplete": "all kinds; 1,536 planted features for 1,024 latents",
    "strengths": "all kinds, common rotation by 5 degrees, sinks, 24 children",
    "places": "no events but these: features weakened to 0.65 of their size, strengthened 1.5 times, broadened "
    "(active at three times as many positions), narrowed (to a third of their documents or positions), displaced (as "
    "many positions, all of them new), and active at every token of 3% of the documents (a trigger)",
    "all": "the events of `strengths` and of `places` together: the headline figure",
}

MEASURES = """
## What the columns mean

The ground truth is relative to the parent. An event counts at its onset; afterwards the feature is `present` at its new
level, or stays `absent` if it is gone. A planted feature is matched, one to one, with the latent whose code
correlates with it most (at least 0.5); one without a latent is *missed*, and counts as wrong at every checkpoint. A
latent that matches no planted feature is a false positive if it is reported as `emerged`, or with any status that is
wrong for the planted feature it tracks.

- **macro-F1**: mean of the F1 of present, weakened, strengthened, suppressed, absent, relocated, replaced and emerged,
  as far as the lineage has them; **amplified** is reported separately. `replaced` covers one successor, several
  (split), and one for several (merged).
- **onset**: share of events whose status is first reported at the checkpoint where they occurred.
- **one model only**: share of the features that a single checkpoint writes, found there.
- **successors**: share of the replaced features whose planted successors are all named at the onset.
- **cover**: share of the 95% intervals of the projection ratio that contain the true ratio, over all features that the
  parent writes; **cover, suppressed**: at the onset of suppressions.
- **false**: of the features with q at most the policy's FDR, those whose true ratio is inside the band;
  **unchanged**: share of the truly present features with such a q.
- **ids**: share of the planted features that had a latent after the first fit and are still under its id at the end.
- **missed**: planted features without a latent at the end.
"""

PLACES_MEASURES = """
The ground truth is again relative to the parent: at its onset an event changes where a feature is active, and later the
feature has the `same` places. Its status stays `present`. A feature that is gone, new or suppressed has no places to
compare; calling it broadened, narrowed or displaced is a false positive.

- **macro-F1**: mean of the F1 of same, broadened, narrowed and displaced, as far as the lineage has them.
- **trigger found**: share of the triggers that are reported as `broadened` at their onset.
- **unchanged**: share of the features with the same places that are reported as broadened, narrowed or displaced.
- **cover**: share of the 95% intervals of `gained_share`, `lost_share` and `firing_rate_ratio` that contain the value
  that the event has on average over draws, over all features with places to compare.
"""

BASELINES = """
The same lineages, with as many latents, active latents and steps, but one dictionary per checkpoint
(`benchmarks/planted_baselines.py` has the rules, which favour the baselines: planted features are matched again at
each step, and sinks are masked). None of them reports `replaced`: *simple* is the mean F1 of present, suppressed,
absent and emerged, with `replaced` counted as absent, over the planted features alone. Weakened and strengthened
features count as present for them.
"""


def page(results: Sequence[Result]) -> str:
    """The page as Markdown. Results whose shape differs from their scenario's are left out."""
    results = [r for r in results if asdict(Shape()) | r["shape"] == asdict(scenario(r["scenario"]))]
    names = [name for name in SCENARIOS if any(r["scenario"] == name for r in results)]
    by_name = {name: [r for r in results if r["scenario"] == name] for name in names}
    lines = [
        "# Verdicts on planted lineages",
        "",
        "Written by `python -m benchmarks.planted --write-docs` from "
        "[benchmarks/planted.json](benchmarks/planted.json). Activations of several checkpoints are synthesised from "
        "known features with known changes. The service receives the activations over REST, one checkpoint at a time, "
        "and its verdicts are scored.",
        "",
        "    python -m benchmarks.planted --scenario all --seeds 1,2,3 --baselines --json",
        "    python -m benchmarks.planted_data --scenario all --seed 1 --out DIR    # the data and its truth",
        "",
        "512 planted features that fire on 0.2 to 5% of 60,000 positions (about 8 at a position), 256 dimensions, 6 "
        "checkpoints (`--checkpoints 12` for more), 1,024 latents, unless the scenario says otherwise:",
        "",
        *(f"- `{name}`: {text}." for name, text in WHAT.items()),
        "",
        "## The service",
        "",
        *_table(
            ["scenario", "seeds", *SERVICE],
            [[f"`{n}`", _seeds(by_name[n]), *_row(by_name[n], SERVICE)] for n in names],
        ),
        "",
        *MEASURES.strip().splitlines(),
    ]
    with_places = {name: part for name in names if (part := [r for r in by_name[name] if r.get("places")])}
    if with_places:
        rows = [[f"`{name}`", _seeds(part), *_row(part, WHERE)] for name, part in with_places.items()]
        lines += ["", "## Where features are active", "", *_table(["scenario", "seeds", *WHERE], rows), ""]
        lines += PLACES_MEASURES.strip().splitlines()
    with_baselines = [name for name in names if any("baselines" in r for r in by_name[name])]
    if with_baselines:
        lines += ["", "## Compared with published methods", "", *BASELINES.strip().splitlines(), ""]
        rows = []
        for name in with_baselines:
            part = [r for r in by_name[name] if "baselines" in r]
            methods = {"featurewatch": part} | {
                method: [r["baselines"][method] for r in part] for method in part[0]["baselines"]
            }
            rows += [[f"`{name}`", method, _seeds(part), *_row(found, METHOD)] for method, found in methods.items()]
        lines += _table(["scenario", "method", "seeds", *METHOD], rows)
    return "\n".join(chain.from_iterable(_wrapped(line) for line in [*lines, ""]))


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Means over lineages by scenario, under the names of the page's columns, and the lowest macro-F1."""
    found = {}
    for name in dict.fromkeys(r["scenario"] for r in results):
        part = [r for r in results if r["scenario"] == name]
        found[name] = {"seeds": [r["seed"] for r in part], "lowest macro-F1": min(r["macro_f1"] for r in part)}
        found[name] |= {column: _mean(part, value) for column, value in SERVICE.items()}
        found[name]["places"] = {column: _mean(part, value) for column, value in WHERE.items()}
        if all("baselines" in r for r in part):
            found[name]["baselines"] = {
                method: {c: _mean([r["baselines"][method] for r in part], value) for c, value in METHOD.items()}
                for method in part[0]["baselines"]
            }
    return found


def _of_class(status: str) -> Callable[[Result], float | None]:
    return lambda r: r["f1"][status] if r["classes"].get(status, {}).get("support") else None


def _of_places(value: Callable[[Result], float | None]) -> Callable[[Result], float | None]:
    """A figure of the scores of places; None for results of a service without them."""
    return lambda r: value(r["places"]) if r.get("places") else None


def _places_covered(figure: str) -> Callable[[Result], float | None]:
    return lambda r: r["place_coverage"][figure]["all"]["covered"] if r.get("place_coverage") else None


F1 = {status: _of_class(status) for status in (*CLASSES, AMPLIFIED)}
METHOD: dict[str, Callable[[Result], float | None]] = {
    "macro-F1": lambda r: r["macro_f1"],
    "simple": lambda r: r["macro_f1_simple"],
    **F1,
    "onset": lambda r: r["onset_accuracy"],
    "one model only": lambda r: r["onset_by_kind"].get("exclusive"),
    "missed": lambda r: r["missed"],
}
SERVICE: dict[str, Callable[[Result], float | None]] = {
    "macro-F1": lambda r: r["macro_f1"],
    **F1,
    "onset": lambda r: r["onset_accuracy"],
    "one model only": lambda r: r["onset_by_kind"].get("exclusive"),
    "successors": lambda r: r["successors_named"]["right"] if r["successors_named"]["n"] else None,
    "cover": lambda r: r["coverage"]["all"]["covered"],
    "cover, suppressed": lambda r: r["coverage"]["suppressed"]["covered"],
    "false": lambda r: r["q_values"]["false_share"],
    "unchanged": lambda r: r["q_values"]["unchanged_share"],
    "ids": lambda r: r["id_stability"],
    "missed": lambda r: r["missed"],
}
WHERE: dict[str, Callable[[Result], float | None]] = {
    "macro-F1": _of_places(lambda found: found["macro_f1"]),
    **{place: _of_places(_of_class(place)) for place in PLACES},
    "trigger found": _of_places(lambda found: found["found_by_kind"].get("trigger")),
    "unchanged": _of_places(lambda found: found["unchanged_flagged"]),
    "cover, gained": _places_covered("gained_share"),
    "cover, lost": _places_covered("lost_share"),
    "cover, rate": _places_covered("firing_rate_ratio"),
}
"""Columns, and their figures in a result; None if the scenario or the result has none."""


def _mean(results: Sequence[Result], value: Callable[[Result], float | None]) -> float | None:
    known = [found for found in map(value, results) if found is not None]
    return float(np.mean(known)) if known else None


def _row(results: Sequence[Result], columns: dict[str, Callable[[Result], float | None]]) -> list[str]:
    cells = []
    for column, value in columns.items():
        mean = _mean(results, value)
        digits = {"missed": 1, "unchanged": 4}.get(column, 3)
        cells.append("" if mean is None else f"{mean:.{digits}f}")
    return cells


def _wrapped(line: str) -> list[str]:
    """Wrap a line at 120 characters, except tables and commands."""
    if line.startswith(("|", " ")):
        return [line]
    return wrap(line, 120, subsequent_indent="  " if line.startswith("- ") else "", break_on_hyphens=False) or [line]


def _seeds(results: Sequence[Result]) -> str:
    return ", ".join(str(seed) for seed in sorted(r["seed"] for r in results))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
