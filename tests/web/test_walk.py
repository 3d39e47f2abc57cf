"""Open every page of a live service in a browser: light and dark, wide and narrow, with and without scripts.

Screenshots of each page are kept in pytest's temporary folder, `pages-*/shots`: look at them after a change.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from featurewatch.service.auth import logic as auth
from featurewatch.service.config import Settings
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Run
from tests import factories
from tests.e2e.parts import Service
from tests.web import chromium
from tests.web.filled import FAMILY

PART = {"exclude": ["tbody tr:nth-child(n+5)", ".passages li:nth-child(n+4)", ".finding:nth-child(n+6)"]}
"""The first rows of a list stand for the rest."""
HERE = f"/families/{FAMILY}"
PATIENCE = 15_000
"""Timeout of actions and expectations, in milliseconds."""
expect.set_options(timeout=PATIENCE)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
PAGES = {
    "families": "/families",
    "family": HERE,
    "family-empty": "/families/empty",
    "family-new": "/families/live",
    "waiting": "/families/live/checkpoints/v1",
    "report": f"{HERE}/checkpoints/v10",
    "features": f"{HERE}/features?limit=12",
    "feature": f"{HERE}/features/F1",
    "feature-replaced": f"{HERE}/features/F73",
    "diff": f"{HERE}/diff?from=v3&to=v10&limit=12",
    "signatures": f"{HERE}/signatures",
    "signature": f"{HERE}/signatures/concept-0",
    "runs": "/runs?limit=12",
    "run-live": "/runs/run_running",
    "run-failed": "/runs/run_failed",
    "alerts": "/alerts",
    "alert": "/alerts/alt_0",
    "webhooks": "/webhooks",
    "keys": "/keys",
    "problem": "/families/none",
}
NARROWED = ("login", "family", "report", "features", "feature", "diff", "run-failed", "alerts", "webhooks")
"""Pages that contain every component between them, also photographed on a narrow screen."""


@dataclass
class Site:
    """A live service, a browser, and the faults found."""

    url: str
    key: str
    database: Database
    shots: Path
    browser: Browser
    faults: list[str] = field(default_factory=list)

    def context(self, theme: str, **options) -> BrowserContext:
        """A new browser context that records console messages and requests to other hosts as faults."""
        context = self.browser.new_context(base_url=self.url, color_scheme=theme, viewport=WIDE, **options)
        context.set_default_timeout(PATIENCE)
        context.on("console", lambda message: self._heard(message.type, f"{message.page.url}: {message.text}"))
        context.on("weberror", lambda error: self.faults.append(f"{error.page.url}: {error.error}"))
        context.on("request", lambda request: self._requested(request.url))
        return context

    def _heard(self, kind: str, text: str) -> None:
        expected = "/families/none" in text and "404" in text
        if kind in ("error", "warning") and not expected:
            self.faults.append(text)

    def _requested(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"request to another host: {url}")

    def sign_in(self, page: Page) -> None:
        page.goto("/families")
        page.get_by_label("API key").fill(self.key)
        page.get_by_role("button", name="Sign in").click()
        arrived(page, "Families")


def arrived(page: Page, heading: str) -> None:
    """Wait for the page with this heading and for its scripts, which a click does not."""
    expect(page.get_by_role("heading", name=heading).first).to_be_visible()
    page.wait_for_load_state("domcontentloaded")


@pytest.fixture(scope="module")
def site(filled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("pages-")
    shutil.copytree(filled_folder, folder / "data")
    settings = Settings(data_dir=folder / "data")
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        _, key = auth.create(session, name="walk", scopes=["admin"])
    (folder / "shots").mkdir()
    live = Service(folder, settings.resolved_database_url, worker=False, require_keys=True)
    with live, chromium.browser() as browser:
        yield Site(str(live.client.url), key, database, folder / "shots", browser)
    database.close()


def test_the_api_browser_loads_nothing_from_other_servers(site: Site) -> None:
    """Only the list of operations is checked: the panels below them are Swagger UI's own, with faults of their own."""
    with site.context("light") as context:
        page = context.new_page()
        page.goto("/docs")
        operation = page.get_by_text("/v1/families/{family}/diff").first
        expect(operation).to_be_visible()
        _look(site, page, "api")
        operation.click()
        expect(page.get_by_text("The baseline.").first).to_be_visible()
        page.get_by_role("link", name="featurewatch").click()
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert not site.faults, "\n".join(site.faults)


def test_every_page_in_both_themes(site: Site) -> None:
    """No serious or critical axe violation, an empty console, and nothing wider than a narrow screen."""
    with site.context("light") as context:
        page = context.new_page()
        page.goto("/login")
        _look(site, page, "login")
        site.sign_in(page)
        for name, path in PAGES.items():
            page.goto(path)
            drawn = page.locator("figure[data-kind] .drawing")
            for place in range(drawn.count()):
                drawn.nth(place).scroll_into_view_if_needed()
                expect(drawn.nth(place).locator("canvas").first).to_be_visible()
            _look(site, page, name)
        page.goto("/webhooks")
        page.locator("table[data-rows] a.id, table a.id").first.click()
        arrived(page, "https://")
        _look(site, page, "webhook")
    assert not site.faults, "\n".join(site.faults)


def _look(site: Site, page: Page, name: str) -> None:
    page.evaluate(chromium.AXE)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.screenshot(path=site.shots / f"{name}-{theme}.jpeg", quality=85, full_page=True)
        rules = chromium.QUICK if theme == "light" else chromium.QUICK | {"runOnly": ["color-contrast"]}
        result = page.evaluate("([part, options]) => axe.run(part, options)", [PART, rules])
        for fault in result["violations"]:
            if fault["impact"] in ("serious", "critical"):
                where = [f"{node['target']} {node['failureSummary']}" for node in fault["nodes"][:3]]
                site.faults.append(f"{name} ({theme}): {fault['id']}: {fault['help']} {where}")
    page.set_viewport_size(NARROW)
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        site.faults.append(f"{name} is wider than a narrow screen")
    if name in NARROWED:
        page.screenshot(path=site.shots / f"{name}-narrow.jpeg", quality=85, full_page=True)
    page.set_viewport_size(WIDE)
    page.emulate_media(color_scheme="light")


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    site.faults.clear()
    with site.context("light", accept_downloads=True) as context:
        page = context.new_page()
        site.sign_in(page)
        yield page
    assert not site.faults


def test_reading(site: Site, page: Page) -> None:
    """From the families to a feature and a comparison, by following links."""
    page.get_by_role("link", name=FAMILY, exact=True).click()
    page.get_by_role("link", name=re.compile("v8 is judged, 17 changed, absent among them$")).click()
    arrived(page, "v8 against v7")
    page.get_by_label("Baseline").select_option("v2")
    arrived(page, "v8 against v2")
    page.get_by_role("link", name="F73").first.click()
    arrived(page, "default")
    page.get_by_text("Numbers of Projection ratio by checkpoint").click()
    expect(page.get_by_role("region", name="Projection ratio by checkpoint: numbers")).to_be_visible()
    for name in ("trajectory", "firing-rate", "strength"):
        page.locator(f"#{name}").scroll_into_view_if_needed()  # plots are drawn when they come near the viewport
        with page.expect_download() as saved:
            page.locator(f"#{name}").get_by_role("button", name="PNG").click()
        assert Path(saved.value.path()).read_bytes().startswith(b"\x89PNG")
    with page.expect_download() as saved:
        page.locator("#trajectory").get_by_role("link", name="CSV").click()
    assert saved.value.suggested_filename == "trajectory.csv"
    page.goto(HERE)
    with page.expect_download() as saved:
        page.locator("#lineage").get_by_role("button", name="PNG").click()
    assert len(Path(saved.value.path()).read_bytes()) > 5_000, "an empty image is smaller"
    drawing = page.locator("#features .drawing")
    drawing.scroll_into_view_if_needed()
    expect(drawing.locator("canvas").first).to_be_visible()
    with page.expect_download() as saved:
        page.locator("#features").get_by_role("button", name="PNG").click()
    shutil.copy(saved.value.path(), site.shots / "features.png")
    drawing.click(position={"x": 600, "y": 15})
    expect(page).to_have_url(re.compile(r"/features/F\d+$"))
    page.get_by_role("link", name="Compare").or_(page.get_by_role("link", name=FAMILY)).first.click()
    page.get_by_role("link", name="Compare").click()
    arrived(page, "Compare checkpoints")
    page.get_by_label("Baseline").select_option("v3")
    arrived(page, "How features changed from v3 to v10")
    page.locator("form.chips input[value=replaced]").click()
    expect(page.locator("table[data-rows] tbody tr")).to_have_count(2)


def test_a_link_on_another_site_leads_to_the_page(site: Site, page: Page) -> None:
    """As in a chat: the browser withholds the cookie at first, and the user is still signed in."""
    page.goto(f"data:text/html,<a href='{site.url}{HERE}'>look</a>")
    page.get_by_role("link", name="look").click()
    expect(page.get_by_role("heading", name="Lineage")).to_be_visible()


def test_a_long_list_loads_more_while_scrolling(site: Site, page: Page) -> None:
    page.goto(f"{HERE}/features?sort=id")
    rows = page.locator("table[data-rows] tbody tr:not(.more)")
    expect(rows).to_have_count(50)
    page.mouse.move(700, 500)
    for count in (90, 130):
        page.mouse.wheel(0, 20_000)
        expect(rows).to_have_count(count)
    ids = page.locator("table[data-rows] td:first-child a.id").all_text_contents()
    assert ids == [f"F{number}" for number in range(len(ids))]
    assert len(ids) % 20 == 10
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download the full list as CSV").click()
    assert len(Path(saved.value.path()).read_text(encoding="utf-8").splitlines()) == 1 + 544


def test_the_keyboard(site: Site, page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.keyboard.press("t")
    page.keyboard.press("g")
    page.keyboard.press("a")
    expect(page.get_by_role("heading", name="Alerts", level=1)).to_be_visible()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark", "the theme persists across pages"
    page.goto(f"{HERE}/features?sort=id")
    page.keyboard.press("/")
    page.keyboard.type("F12")
    page.keyboard.press("Enter")
    expect(page.locator("table[data-rows] tbody tr")).to_have_count(1)
    assert "tag=" not in page.url, "empty fields are not in the URL"
    page.goto(f"{HERE}/features?sort=id")
    for key in "jjjk":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    arrived(page, "F1")
    before = page.url
    pressed = page.locator("[data-watch]").get_attribute("aria-pressed")
    page.keyboard.press("w")
    expect(page.locator("[data-watch]")).not_to_have_attribute("aria-pressed", str(pressed))
    assert page.url == before, "htmx replaces only the button"


def test_writing(site: Site, page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{HERE}/features/F5")
    page.get_by_label("Label", exact=True).fill("uses of for")
    page.get_by_label("Tags").fill("loops")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("F5 uses of for")
    page.goto("/alerts")
    page.get_by_role("button", name="Acknowledge alt_0").click()
    page.get_by_label("Mute alt_1 for how long").select_option("168")
    page.get_by_role("button", name="Mute alt_1").click()
    page.get_by_role("button", name="Resolve alt_2").click()
    expect(page.locator("table[data-rows] tbody tr")).to_have_count(1)
    page.get_by_text("New rule").click()
    page.get_by_label("Name").fill("anything watched")
    page.get_by_role("button", name="Create rule").click()
    expect(page.get_by_role("region", name="Rules")).to_contain_text("anything watched")
    page.goto("/webhooks")
    page.get_by_label("URL").fill("https://hooks.example/x")
    page.get_by_label("alert.raised").check()
    page.get_by_role("button", name="Create webhook").click()
    expect(page.locator(".secret")).to_contain_text("whsec_")
    page.get_by_role("link", name="Go to the webhook").click()
    page.get_by_role("button", name="Send a test event").click()
    expect(page.get_by_role("region", name="Deliveries")).to_contain_text("webhook.test")
    page.goto("/keys")
    page.get_by_label("Name").fill("ci")
    page.get_by_role("button", name="Create key").click()
    expect(page.locator(".secret")).to_contain_text("fw_")
    page.get_by_role("link", name="All keys").click()
    page.get_by_role("button", name="Revoke ci").click()
    expect(page.get_by_role("region", name="API keys")).to_contain_text("revoked")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    page.goto("/families")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    page.get_by_label("API key").fill(site.key)
    page.get_by_role("button", name="Sign in").click()


def test_a_run_is_followed_live_and_cancelled(site: Site, page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/runs/run_running")
    with site.database.write() as session:
        run = session.get_one(Run, "run_running")
        run.stage, run.progress, run.detail = "extend", 0.75, {"iterations": 12}
    expect(page.locator("[data-percent]")).to_have_text("75%")
    expect(page.locator("[data-detail]")).to_have_text("iterations 12")
    log = page.get_by_role("region", name="Log")
    lines = log.get_by_role("listitem")
    expect(lines).to_have_text([re.compile("Attempt 1"), re.compile("claimed"), re.compile("harvest")])
    with site.database.write() as session:
        run = session.get_one(Run, "run_running")
        run.attempt = 2
        session.flush()
        factories.log(session, run, [("warning", f"so far {number}", {}) for number in range(600)])
    expect(lines).to_have_count(3 + 1 + 600)
    expect(lines.nth(3)).to_contain_text("Attempt 2")
    expect(lines.last).to_have_text(re.compile("! *warning *so far 599"))
    expect(lines.last).to_be_in_viewport()
    page.get_by_label("Lines", exact=True).select_option("error")
    expect(log).to_contain_text("No lines at this level")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download the full log").click()
    assert Path(saved.value.path()).read_text(encoding="utf-8").count("\n") == 602
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("main .status").first).to_contain_text("cancelling")
    with site.database.write() as session:
        run = session.get_one(Run, "run_running")
        run.state, run.progress = "cancelled", 0.8
    expect(page.get_by_role("button", name="Retry")).to_be_visible()


def test_everything_can_be_read_without_scripts(site: Site) -> None:
    with site.context("light", java_script_enabled=False) as context:
        page = context.new_page()
        site.sign_in(page)
        page.goto(HERE)
        expect(page.get_by_role("link", name=re.compile("v8 is judged"))).to_be_visible()
        page.locator("#changes summary").click()
        expect(page.locator("#changes table")).to_contain_text("suppressed")
        page.goto(f"{HERE}/features?sort=id")
        page.get_by_role("link", name="Load more").click()
        expect(page.locator("table[data-rows] tbody tr").first).to_contain_text("F50")
        page.goto(f"{HERE}/checkpoints/v10")
        page.get_by_label("Baseline").select_option("v2")
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("v10 against v2")
        page.goto(f"{HERE}/features/F6")
        page.get_by_role("button", name="Watch").click()
        expect(page.get_by_role("button", name="Watched")).to_be_visible()
    assert not site.faults


def test_a_missing_browser_is_a_clear_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv(chromium.VARIABLE, raising=False)
    with pytest.raises(chromium.BrowserMissingError, match="apt-get install chromium"):
        chromium.executable()
