"""The browser of the tests: Debian's, or what the machine has of its kind. Never one that is downloaded on the way."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

VARIABLE = "FEATUREWATCH_TEST_CHROMIUM"
AXE = (Path(__file__).parent / "vendor/axe-4.14.1.min.js").read_text(encoding="utf-8")
QUICK = {"resultTypes": ["violations"], "preload": False, "iframes": False}
"""All of axe's rules, but nothing of what it found in order."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class BrowserMissingError(RuntimeError):
    """There is no browser to walk over the pages with."""


def executable() -> str:
    """Path of the browser: of the environment, or of the PATH."""
    named = os.environ.get(VARIABLE, "")
    found = [named] if named else [path for path in map(shutil.which, NAMES) if path]
    if not found or not os.access(found[0], os.X_OK):
        raise BrowserMissingError(
            "The pages are tested in Chromium, and there is none: `apt-get install chromium` (or your system's own "
            f"package) as root, or name one with {VARIABLE}=/path/to/chromium."
        )
    return found[0]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    # Chromium's sandbox refuses to run as root, which a container's tests do.
    arguments = ["--disable-gpu", *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable(), args=arguments)
        try:
            yield opened
        finally:
            opened.close()
