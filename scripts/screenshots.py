"""`make screenshots`: pictures of the pages for docs/, of a real node with real services.

They are taken by the tests' browser, so run it after `make setup-dev`, as root.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, sync_playwright  # noqa: E402

from tests import browser  # noqa: E402
from tests.stack import Stack, free_port  # noqa: E402

FOLDER = ROOT / "docs/screenshots"
SHOTS = {"overview": "dark", "service": "light", "dump": "light", "image": "light", "failure": "dark"}


def main() -> None:
    """Start a node, let it do something worth seeing, take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="miehisto-shots-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stack = Stack(folder)
        stack.start()
        try:
            addresses = _live_through(stack)
            with sync_playwright() as playwright:
                chromium = playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=list(browser.FLAGS)
                )
                for shot, scheme in SHOTS.items():
                    _take(chromium, stack, shot, scheme, addresses[shot])
                chromium.close()
        finally:
            stack.clear()
            stack.stop()


def _live_through(stack: Stack) -> dict[str, str]:
    port = free_port()
    server = ("python3", "-u", "-m", "http.server", str(port), "--directory", "/usr/share/common-licenses")
    web = stack.create(*server, options=("--name", "docs"))
    subprocess.run(["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}/"], check=False)
    stack.create("redis-server", "--port", str(free_port()), "--save", "", options=("--name", "cache"))
    stack.mhctl("service", "create", "--name", "shop", "--", "/usr/local/bin/shop", check=False)
    stack.dump(web, "--leave-running")
    image = stack.dump(web)
    stack.restore(image)
    stack.dump("cache")
    failed = next(job for job in stack.api("GET", "jobs").body if job["status"] == "failed")
    return {
        "overview": "/",
        "service": f"/services/{web}/",
        "dump": f"/services/{web}/",
        "image": f"/images/{image}/",
        "failure": f"/jobs/{failed['object_id']}/",
    }


def _take(chromium: Browser, stack: Stack, name: str, scheme: str, address: str) -> None:
    window = chromium.new_context(
        base_url=f"http://127.0.0.1:{stack.port}",
        viewport={"width": 1280, "height": 860},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = window.new_page()
    browser.log_in_as_admin(page, stack)
    page.goto(address)
    if name == "dump":
        page.get_by_role("link", name="Dump", exact=True).click()
        page.get_by_role("dialog").get_by_text("Yes: nothing was found").wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=str(FOLDER / f"{name}.png"))
    window.close()


if __name__ == "__main__":
    main()
