"""How soon an open page shows what has changed: Debian's Chromium looks and notes when it draws it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from playwright.sync_api import Page

from benchmarks import first_view
from benchmarks.measuring import Sample
from benchmarks.node import Node
from benchmarks.open_pages import opened

WITHIN = 30_000  # milliseconds that a change may take to show before the measurement is given up

# Notes each state that the page shows of its service, and when the frame with it is drawn.
_NOTE = """() => {
  window.noted = [];
  let last = "";
  const look = () => {
    const state = document.querySelector(".title .status").textContent.trim();
    if (state === last) return;
    last = state;
    requestAnimationFrame(() => window.noted.push([state, Date.now() / 1000]));
  };
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
  look();
}"""
_NOTED = "state => window.noted.length && window.noted.at(-1)[0] === state"


def shown(
    node: Node, session: str, service: str, looked_at: Sequence[str], changes: int, count: int
) -> dict[str, Sample]:
    """Stop and start a running service in turn while Chromium has its page open.

    Args:
        looked_at: the addresses of the other pages.
        changes: how many with each number of other pages; an even number, so that it runs afterwards.
        count: how many other pages are open, the second time.

    Returns:
        The seconds from a job's end, as the API tells it, until the page shows the state after it: "alone"
        with that page only, "watched" with the others.
    """
    with first_view.chromium() as browser:
        page = first_view.window_on(browser, node.port, session, first_view.WIDTHS[0]).new_page()
        page.goto(f"/services/{service}/")
        page.wait_for_selector("html[data-stream=open]", state="attached")
        page.evaluate(_NOTE)
        found = {"alone": _sample(node, page, service, changes)}
        with opened(node.port, session, looked_at, count):
            found["watched"] = _sample(node, page, service, changes)
    return found


def _sample(node: Node, page: Page, service: str, changes: int) -> Sample:
    verbs = [("stop", "stopped"), ("start", "running")]
    return Sample([_seconds(node, page, service, *verbs[number % 2]) for number in range(changes)])


def _seconds(node: Node, page: Page, service: str, verb: str, state: str) -> float:
    page.wait_for_timeout(1000)  # the change before is over and done with
    job = node.mhctl("service", verb, "--no-wait", service)
    page.wait_for_function(_NOTED, arg=state, timeout=WITHIN)
    at = float(page.evaluate("window.noted.at(-1)[1]"))
    ended = datetime.fromisoformat(node.json("job", "wait", job)["finished"].replace("Z", "+00:00"))
    return at - ended.timestamp()
