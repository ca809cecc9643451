"""Pages in a real browser: Debian's chromium, driven by Playwright. What a page does wrong by itself is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@dataclass(slots=True)
class Visit:
    """A page in a context of its own. `errors` are its console's and those that it did not catch; `elsewhere` are the
    requests that left the host."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def refused(self) -> list[str]:
        """What the console says of calls that were answered with an error; these are no longer held against it."""
        found = [each for each in self.errors if each.startswith("Failed to load resource")]
        self.errors = [each for each in self.errors if each not in found]
        return found


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        expect.set_options(timeout=15_000)  # a page looks again every five seconds, and machines may be busy
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def visiting(opened: Browser, url: str, **how: Any) -> Iterator[Visit]:
    """A page at an address; it must end without an error of its own, and without a request to anywhere else."""
    context = opened.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **how})
    context.set_default_timeout(10_000)
    visit = Visit(context.new_page(), url)
    page = visit.page
    page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on("request", lambda request: visit.elsewhere.append(request.url) if not _local(request.url, url) else None)
    try:
        page.goto(f"{url}/ops")
        yield visit
    finally:
        context.close()
    assert visit.errors == []
    assert visit.elsewhere == []


def _local(asked: str, url: str) -> bool:
    return asked.startswith((f"{url}/", f"blob:{url}/"))
