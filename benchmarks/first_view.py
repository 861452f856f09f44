"""What a browser fetches for a first view, and whether what it shows moves: Debian's Chromium looks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from playwright.sync_api import Browser, BrowserContext, sync_playwright

WIDTHS = (1280, 390)
HEIGHT = 900
SETTLED = 1500  # milliseconds after the load in which something could still move

# The sum of all shifts without a person's hand in them, whatever their window (the metric CLS has the worst).
_SHIFTS = """() => new Promise((resolve) => {
  let sum = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => resolve(sum), 100);
})"""


class View(NamedTuple):
    """A first view. octets: what came over the wire, heads included, by kind. encodings: what was sent."""

    octets: dict[str, int]
    encodings: set[str]
    shifts: dict[int, float]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium for the block.

    Raises:
        RuntimeError: there is none.
    """
    program = shutil.which("chromium")
    if program is None:
        raise RuntimeError("chromium is not installed: run make setup-dev")
    with sync_playwright() as playwright:
        # Root's Chromium has no sandbox; it sees this site alone.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def window_on(browser: Browser, port: int, session: str, width: int) -> BrowserContext:
    """Return a window of its own, with an empty cache, of somebody who is logged in."""
    site = f"http://127.0.0.1:{port}"
    window = browser.new_context(viewport={"width": width, "height": HEIGHT}, base_url=site)
    window.add_cookies([{"name": "sessionid", "value": session, "url": site}])
    return window


def views(port: int, session: str, addresses: dict[str, str]) -> dict[str, View]:
    """Look at each address with an empty cache, at each width."""
    with chromium() as browser:
        return {label: _view(browser, port, session, address) for label, address in addresses.items()}


def _view(browser: Browser, port: int, session: str, address: str) -> View:
    octets: dict[str, int] = {}
    encodings: set[str] = set()
    shifts: dict[int, float] = {}
    for width in WIDTHS:
        window = window_on(browser, port, session, width)
        page = window.new_page()
        told = window.new_cdp_session(page)
        kinds: dict[str, str] = {}
        octets.clear()

        def answered(said: dict[str, Any], kinds: dict[str, str] = kinds) -> None:
            kinds[said["requestId"]] = said["type"]
            heads = {name.lower(): text for name, text in said["response"]["headers"].items()}
            encodings.add(heads.get("content-encoding", "none"))

        def ended(said: dict[str, Any], kinds: dict[str, str] = kinds) -> None:
            kind = kinds.get(said["requestId"], "Other")
            octets[kind] = octets.get(kind, 0) + int(said["encodedDataLength"])

        told.on("Network.responseReceived", answered)
        told.on("Network.loadingFinished", ended)
        told.send("Network.enable")
        page.goto(address, wait_until="load")
        page.wait_for_timeout(SETTLED)
        shifts[width] = float(page.evaluate(_SHIFTS))
        window.close()
    return View(dict(octets), encodings, shifts)
