"""Follow every link on the pages of a live service: `python -m tests.web.crawl http://127.0.0.1:8000 shots`.

Of each kind of page (a path without its ids and names of query fields) two are opened, wide and narrow, light and dark.
It ends with 1 where axe finds a serious fault, where the console says something, where a page is wider than its screen,
or where somebody else is asked; pictures are in the folder. For a service that asks for no key, such as the one of
`make demo ARGS=--keep`.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Page

from tests.web import chromium

SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
OF_A_KIND = 2
NO_PAGE = re.compile(r"^/(docs|openapi)|[?&](format|csv)=|^/runs/.*/log")


def kind_of(link: str) -> str:
    """A link without ids: links of one kind lead to the same template."""
    path = re.sub(r"/F\d+|/(run|alt|whk)_\w+", r"/\1_", urlsplit(link).path)
    return path + "?" + "&".join(sorted({name for name, _ in parse_qsl(urlsplit(link).query)}))


def look(page: Page, link: str, shots: Path | None) -> list[str]:
    """Faults of an open page at each width and theme."""
    faults = []
    for drawing in page.locator("figure[data-kind] .drawing").all():
        drawing.scroll_into_view_if_needed()
    page.evaluate(chromium.AXE)
    for width, theme in SCREENS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        violations = page.evaluate("options => axe.run(document, options)", chromium.QUICK)["violations"]
        serious = [fault for fault in violations if fault["impact"] in ("serious", "critical")]
        faults += [f"{link} ({theme}, {width}): {fault['id']} at {fault['nodes'][0]['target']}" for fault in serious]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            faults.append(f"{link} is wider than {width}")
        if shots:
            name = re.sub(r"\W+", "-", kind_of(link)).strip("-")
            page.screenshot(path=shots / f"{name}-{width}-{theme}.png", full_page=True)
    page.set_viewport_size({"width": SCREENS[0][0], "height": 900})
    return faults


def crawl(base: str, shots: Path) -> list[str]:
    """Faults of all pages. Prints the pages visited."""
    shots.mkdir(parents=True, exist_ok=True)
    faults, kinds, todo, took = list[str](), Counter[str](), ["/families"], list[tuple[float, str]]()
    with chromium.browser() as browser, browser.new_context(base_url=base) as context:
        context.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
        context.on("weberror", lambda error: faults.append(str(error.error)))
        context.on("request", lambda sent: sent.url.startswith((base, "data:", "blob:")) or faults.append(sent.url))
        page = context.new_page()
        for link in todo:  # it grows
            kinds[kind_of(link)] += 1
            if kinds[kind_of(link)] > OF_A_KIND:
                continue
            answer = page.goto(link)
            if answer is None or answer.status != 200:
                faults.append(f"{link}: {answer and answer.status}")
                continue
            took.append((page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"), link))
            faults += look(page, link, shots if kinds[kind_of(link)] == 1 else None)
            links = page.eval_on_selector_all("a[href^='/']", "all => all.map(one => one.getAttribute('href'))")
            new = dict.fromkeys(one.partition("#")[0] for one in links)
            todo += [one for one in new if one not in todo and not NO_PAGE.search(one)]
    sys.stdout.write(f"{len(took)} pages of {len(kinds)} kinds; slowest: {max(took)[0]:.0f} ms, {max(took)[1]}\n")
    return faults


if __name__ == "__main__":
    all_faults = crawl(sys.argv[1].rstrip("/"), Path(sys.argv[2]))
    sys.stdout.write("\n".join(all_faults or ["no faults"]) + "\n")
    sys.exit(bool(all_faults))
