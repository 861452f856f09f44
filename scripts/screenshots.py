"""`make screenshots`: every page of a real node with real services, wide and on a phone, light and dark.

All go into build/screenshots, to be looked at; those that the documentation shows are copied to
docs/screenshots. They are taken by the tests' browser, so run it after `make setup-dev`, as root.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from tests import browser  # noqa: E402
from tests.stack import Stack, eventually, free_port, get_page  # noqa: E402

ALL = ROOT / "build/screenshots"
SHOWN = ROOT / "docs/screenshots"
WIDTHS = (1280, 390)
SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
DOCUMENTATION = {
    "overview": "overview-1280-dark",
    "service": "service-1280-light",
    "dump": "service-dump-1280-light",
    "image": "image-1280-light",
    "failure": "job-failed-1280-dark",
}
"""The pictures that docs/ shows, and which of all they are."""
EMPTY = {
    "overview-empty": "/",
    "services-empty": "/services/",
    "images-empty": "/images/",
    "jobs-empty": "/jobs/",
}
"""Pages of a node on which nothing has happened yet."""


def main() -> None:
    """Start a node, let it do something worth seeing, take the pictures."""
    shutil.rmtree(ALL, ignore_errors=True)
    ALL.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="miehisto-shots-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stack = Stack(folder)
        stack.start()
        try:
            with sync_playwright() as playwright:
                chromium = playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=list(browser.FLAGS)
                )
                _take(chromium, stack, EMPTY)
                _take(chromium, stack, _live_through(stack))
                chromium.close()
        finally:
            stack.clear()
            stack.stop()
    for shown, taken in DOCUMENTATION.items():
        shutil.copy(ALL / f"{taken}.png", SHOWN / f"{shown}.png")


def _live_through(stack: Stack) -> dict[str, str]:
    """Let services live, and return the addresses of the pages that are worth a look then, by their names."""
    port = free_port()
    server = ("python3", "-u", "-m", "http.server", str(port), "--directory", "/usr/share/common-licenses")
    web = stack.create(*server, options=("--name", "docs"))
    eventually(lambda: get_page(port))
    database = ("redis-server", "--port", str(free_port()), "--save", "")
    cache = stack.create(*database, options=("--name", "cache"))
    stack.mhctl("service", "create", "--name", "shop", "--", "/usr/local/bin/shop", check=False)
    older = stack.dump(web, "--leave-running")
    image = stack.dump(web)
    stack.restore(image)
    put_away = stack.dump("cache")
    for each in (older, image, put_away):
        stack.mhctl("image", "show", each)  # it waits until somebody has read what is in it
    jobs = stack.api("GET", "jobs").body
    failed = next(job for job in jobs if job["status"] == "failed")
    dumped = next(job for job in jobs if job["kind"] == "dump")
    return {
        "overview": "/",
        "services": "/services/",
        "services-none-found": "/services/?q=nothing",
        "service-new": "/services/new/",
        "bulk": f"/services/bulk/?do=stop&id={web}&id={cache}",
        "service": f"/services/{web}/",
        "service-dumped": f"/services/{cache}/",
        "service-failed": f"/services/{failed['service']}/",
        "service-log": f"/services/{web}/logs/",
        "service-now": f"/services/{web}/now/",
        "service-environment": f"/services/{web}/",
        "service-dump": f"/services/{web}/",
        "service-stop": f"/services/{web}/",
        "service-restore": f"/services/{cache}/",
        "service-change": f"/services/{web}/",
        "service-delete": f"/services/{web}/",
        "images": "/images/",
        "image": f"/images/{image}/",
        "image-delete": f"/images/{put_away}/",
        "compare-choose": "/images/compare/",
        "compare": f"/images/compare/?a={older}&b={image}",
        "prune": "/images/prune/",
        "jobs": "/jobs/",
        "job": f"/jobs/{dumped['object_id']}/",
        "job-failed": f"/jobs/{failed['object_id']}/",
        "audit": "/audit/",
        "tokens": "/account/tokens/",
        "password": "/account/password/",
        "admin": "/admin/",
        "admin-services": "/admin/services/service/",
        "not-found": "/services/nothing/",
        "login": "/login/",
    }


def _opens(link: str) -> Callable[[Page], None]:
    def click(page: Page) -> None:
        page.get_by_role("main").get_by_role("link", name=link, exact=True).first.click()
        page.get_by_role("dialog").wait_for()

    return click


def _asks_for_a_dump(page: Page) -> None:
    _opens("Dump")(page)
    page.get_by_role("dialog").get_by_text("Yes: nothing was found").wait_for()


def _shows_the_environment(page: Page) -> None:
    page.get_by_role("button", name="Show its environment").click()
    page.get_by_role("heading", name="Environment", exact=True).wait_for()


STEPS: dict[str, Callable[[Page], None]] = {
    "service-dump": _asks_for_a_dump,
    "service-stop": _opens("Stop"),
    "service-restore": _opens("Restore"),
    "service-change": _opens("Change"),
    "service-delete": _opens("Delete"),
    "service-environment": _shows_the_environment,
    "image-delete": _opens("Delete"),
}
"""What is done on a page before its picture is taken."""


def _take(chromium: Browser, stack: Stack, addresses: dict[str, str]) -> None:
    for width in WIDTHS:
        for scheme in SCHEMES:
            window = chromium.new_context(
                base_url=f"http://127.0.0.1:{stack.port}",
                viewport={"width": width, "height": 860},
                color_scheme=scheme,
            )
            page = window.new_page()
            browser.log_in_as_admin(page, stack)
            for name, address in addresses.items():
                if name == "login":
                    window.clear_cookies()
                page.goto(address)
                if name in STEPS:
                    STEPS[name](page)
                page.wait_for_timeout(600)
                # A dialog covers the window, not the page below it.
                whole = name not in STEPS and name not in DOCUMENTATION
                page.screenshot(path=str(ALL / f"{name}-{width}-{scheme}.png"), full_page=whole)
            window.close()


if __name__ == "__main__":
    main()
