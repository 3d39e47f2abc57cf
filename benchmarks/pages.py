"""The pages of a large family in a browser: `python -m benchmarks.pages --write-docs` writes docs/benchmarks.md.

A family of many checkpoints (`service_data`) on SQLite, the API as `featurewatch up` starts it, and headless Chromium
without a GPU, all on this machine.

- *pages*: each page is loaded several times with different checkpoints and features, in a fresh browser and in one with
  cached style sheets and scripts. The time runs from the request to the end of the `load` event; the API has read every
  checkpoint once.
- *scrolling*: the list of all features is scrolled at a steady speed while rows load, compared with an empty page of
the
  same height: frames per second, and the 95th percentile of their durations.
"""

import argparse
import json
import random
import tempfile
from typing import Any

import numpy as np
from playwright.sync_api import Browser

from benchmarks.service import PAGE, Asked, filled, installed, machine, serving, table_lines, write_between
from benchmarks.service_data import FAMILY
from tests.web.chromium import browser

GOAL_MS = 300
BEGIN, END = "<!-- pages -->", "<!-- /pages -->"
SIZE: Any = {"width": 1280, "height": 900}
SPEEDS = (1800, 3600)
"""Pixels per second: two and four screens."""
SCROLL_S, IDLE_MS = 8.0, 500
TOLD = ("features", "checkpoints", "hook_points", "visits", "seed")

LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
SCROLL = """async ([speed, seconds]) => {
    const began = performance.now(), gaps = [];
    let last = began;
    while (last - began < 1000 * seconds) {
        const now = await new Promise(requestAnimationFrame);
        scrollTo(0, speed * (now - began) / 1000);
        gaps.push(now - last);
        last = now;
    }
    return [gaps, document.querySelectorAll('tbody tr').length, scrollY];
}"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--features", type=int, default=32_768, help="that the newest checkpoint has")
    parser.add_argument("--checkpoints", type=int, default=50)
    parser.add_argument("--hook-points", type=int, default=4)
    parser.add_argument("--visits", type=int, default=10, help="of each page")
    parser.add_argument("--quick", action="store_true", help="small and short")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    options = parser.parse_args()
    if options.quick:
        options.features, options.checkpoints, options.visits = 2048, 12, 3
    with tempfile.TemporaryDirectory(prefix="featurewatch-pages-") as folder, installed("sqlite", folder) as settings:
        filled(settings, options)
        with serving(settings, "") as service, browser() as opened:
            Asked(options.features, options.checkpoints).every_checkpoint(service)
            base = f"http://127.0.0.1:{service.port}"
            result = {
                "machine": machine(),
                **{name: getattr(options, name) for name in TOLD},
                "pages": visited(opened, base, options),
                "scrolling": scrolled(opened, base),
            }
    if options.write_docs:
        write_page(result)
    print(json.dumps(result))


def drawn(rng: random.Random, options: argparse.Namespace) -> dict[str, str]:
    """Page -> its paths for several checkpoints and a feature."""
    one, other = rng.sample(range(1, options.checkpoints), 2)
    family, feature = f"/families/{FAMILY}", rng.randrange(options.features // 2)
    return {
        "families": "/families",
        "family": family,
        "report": f"{family}/checkpoints/v{one}",
        "report, another baseline": f"{family}/checkpoints/v{one}?baseline=v{other}",
        "features": f"{family}/features?checkpoint=v{one}",
        "feature": f"{family}/features/F{feature}",
        "comparison": f"{family}/diff?from=v{one}&to=v{other}",
        "signatures": f"{family}/signatures",
        "runs": "/runs",
        "alerts": "/alerts",
        "webhooks": "/webhooks",
        "keys": "/keys",
    }


def visited(opened: Browser, base: str, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Page -> milliseconds of visits with a new browser (`first`) and with a warm cache (`again`)."""
    rng, took = random.Random(options.seed), dict[str, dict[str, list[float]]]()
    for _ in range(options.visits):
        for name, path in drawn(rng, options).items():
            context = opened.new_context(viewport=SIZE)
            page = context.new_page()
            for kind in ("first", "again"):
                page.goto("about:blank")
                page.wait_for_timeout(IDLE_MS)  # nobody comes back while the plots are being drawn
                answer = page.goto(base + path, wait_until="load")
                if answer is None or answer.status != 200:
                    raise SystemExit(f"{path}: {answer and answer.status}")
                milliseconds = page.wait_for_function(LOADED).json_value()
                took.setdefault(name, {"first": [], "again": []})[kind].append(round(milliseconds, 1))
            context.close()
    return took


def scrolled(opened: Browser, base: str) -> list[dict[str, Any]]:
    """Frames of an empty page, of the list of features, and of the list with 500 rows loaded."""
    features, found = f"/families/{FAMILY}/features?sort=id", []
    for name, path in (("nothing", None), ("features", features), ("500 at once", f"{features}&limit=500")):
        for speed in SPEEDS:
            page = opened.new_page(viewport=SIZE)
            if path is None:
                page.set_content(f"<div style='height: {int(speed * SCROLL_S) + 2000}px'></div>")
            else:
                page.goto(base + path, wait_until="networkidle")
            gaps, rows, y = page.evaluate(SCROLL, [speed, SCROLL_S])
            found.append(
                {"page": name, "speed": speed, "rows": rows, "pixels": round(y),
                 "frames": round(len(gaps) / (sum(gaps) / 1e3), 1), "p95": round(float(np.percentile(gaps, 95)), 1)}
            )  # fmt: skip
            page.close()
    return found


def write_page(result: dict[str, Any]) -> None:
    """Write the tables of a run to docs/benchmarks.md."""
    rows = []
    for name, took in result["pages"].items():
        cells = [f"{figure(took[kind]):.0f}" for kind in ("first", "again") for figure in (np.median, np.max)]
        most = max(np.median(took["first"]), np.median(took["again"]))
        rows.append([name, *cells, "yes" if most <= GOAL_MS else "no"])
    head = ["page", "first visit, ms", "longest", "again, ms", "longest", f"at most {GOAL_MS} ms"]
    lines = [
        f"{result['features']:,} features x {result['checkpoints']} checkpoints x {result['hook_points']} hook points; "
        f"medians of {result['visits']} visits; {result['machine']}; seed {result['seed']}.",
        "",
        *table_lines(head, rows),
        "",
        *table_lines(
            ["scrolled", "pixels a second", "pixels", "rows at the end", "frames a second", "p95 of a frame, ms"],
            [
                [one["page"], f"{one['speed']:,}", f"{one['pixels']:,}", f"{one['rows']:,}", f"{one['frames']:.1f}",
                 f"{one['p95']:.1f}"]
                for one in result["scrolling"]
            ],
        ),
    ]  # fmt: skip
    write_between(BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
