"""The browser for the tests: an installed Chromium or Chrome. The tests never download one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

VARIABLE = "FEATUREWATCH_TEST_CHROMIUM"
AXE = (Path(__file__).parent / "vendor/axe-4.14.1.min.js").read_text(encoding="utf-8")
QUICK = {"resultTypes": ["violations"], "preload": False, "iframes": False}
"""All of axe's rules; only violations in the result."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class BrowserMissingError(RuntimeError):
    """No browser is installed."""


def executable() -> str:
    """Path of the browser, from the environment variable or the PATH."""
    named = os.environ.get(VARIABLE, "")
    paths = [named] if named else [path for path in map(shutil.which, NAMES) if path]
    if not paths or not os.access(paths[0], os.X_OK):
        raise BrowserMissingError(
            "The page tests need Chromium, which was not found. Install it (`apt-get install chromium` or your "
            f"system's package), or set {VARIABLE}=/path/to/chromium."
        )
    return paths[0]


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser."""
    # Chromium's sandbox refuses to run as root, as tests in containers do.
    arguments = ["--disable-gpu", *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable(), args=arguments)
        try:
            yield opened
        finally:
            opened.close()
