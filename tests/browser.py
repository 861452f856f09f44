"""Debian's Chromium, driven by Playwright, before a real node. What a failed test saw is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.stack import Stack

ARTIFACTS = Path(__file__).resolve().parent.parent / "test-artifacts"
FLAGS = (
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 30_000  # milliseconds; a test machine can be busy
SERIOUS = {"serious", "critical"}
WIDTHS = (1280, 360)
SCHEMES: dict[Literal["light", "dark"], dict[str, Any]] = {
    "light": {},
    "dark": {"runOnly": ["color-contrast"]},
}
"""Colour schemes, and what axe-core is told to look at in each."""
_MAKE_MEMBER = """
from django.contrib.auth.models import Group, User
user, _ = User.objects.get_or_create(username="the-{role}")
user.set_password("long enough 1")
user.save()
user.groups.set([Group.objects.get(name="{role}")])
"""
AFTER_A_FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
AFTER_ALL_MOTION = f"""(async () => {{
    await {AFTER_A_FRAME};
    const moving = document.getAnimations().filter((each) => each.transitionProperty);
    await Promise.allSettled(moving.map((each) => each.finished));
}})()"""
"""Colours that are still on their way are nobody's."""

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def chromium(node: Stack) -> Iterator[Browser]:
    """One browser for the run, closed before the node, which looks whether anything is left."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: run `make setup-dev`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


def context(chromium: Browser, stack: Stack, *, java_script: bool) -> BrowserContext:
    """Return a browser's window of its own, with no cookie yet."""
    made = chromium.new_context(
        base_url=f"http://127.0.0.1:{stack.port}",
        viewport={"width": 1280, "height": 900},
        java_script_enabled=java_script,
    )
    made.set_default_timeout(PATIENCE)
    return made


@pytest.fixture
def page(chromium: Browser, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page before the real node; it fails the test when the browser's console complains."""
    yield from _watched(context(chromium, stack, java_script=True), stack, request)


@pytest.fixture
def plain_page(chromium: Browser, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The same in a browser without JavaScript."""
    yield from _watched(context(chromium, stack, java_script=False), stack, request)


def _watched(window: BrowserContext, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Yield a page; after a failure keep what it shows, and fail for what its console said."""
    opened = window.new_page()
    complaints: list[str] = []
    opened.on("console", lambda said: complaints.append(said.text) if _complains(said) else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    failed_before = request.session.testsfailed
    yield opened
    if request.session.testsfailed > failed_before:
        keep(opened, stack, request.node.name)
    window.close()
    assert not complaints, "\n".join(complaints)


def _complains(said: ConsoleMessage) -> bool:
    """Tell of scripts and of the Content-Security-Policy, not of answers such as 403, which tests ask for,
    nor of htmx's requests that a page left behind.
    """
    harmless = ("Failed to load resource", "Response Status Error", "htmx:sendAbort", "htmx:afterRequest")
    if said.text.startswith("Applying inline style") and not said.location["url"]:
        return False  # axe-core's own: a style sheet that imports another it reads so
    return said.type == "error" and not said.text.startswith(harmless)


def keep(page: Page, stack: Stack, name: str) -> None:
    """Keep what is of use after a failure: the page, the node's output, CRIU's logs."""
    folder = ARTIFACTS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    page.screenshot(path=str(folder / "page.png"), full_page=True)
    (folder / "page.html").write_text(page.content())
    shutil.copy(stack.output, folder / "miehistod.log")
    (folder / "jobs.json").write_text(stack.mhctl("job", "list", "--json", check=False).out)
    for log in [*stack.state.rglob("dump.log"), *stack.state.rglob("restore.log")]:
        shutil.copy(log, folder / f"{log.parent.name}-{log.name}")


def log_in(page: Page, name: str, password: str) -> None:
    """Log in by the form."""
    page.goto("/login/")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()


def log_in_as_admin(page: Page, stack: Stack) -> None:
    """Log in as the first user, whose password the daemon has written down."""
    log_in(page, "admin", (stack.state / "admin_password").read_text().strip())


def log_in_as(page: Page, stack: Stack, role: str) -> None:
    """Log in as somebody who has this role alone."""
    stack.manage("shell", "--no-imports", "-c", _MAKE_MEMBER.format(role=role))
    log_in(page, f"the-{role}", "long enough 1")


def connected(page: Page) -> None:
    """Wait until the page's stream of changes is open."""
    page.wait_for_selector("html[data-stream=open]", state="attached")


def assert_accessible(page: Page, what: str = "") -> None:
    """Fail for what axe-core calls serious, and for what is wider than the window.

    The page is looked at wide and narrow, light and dark, with all that is folded unfolded. In the dark only
    colours differ, so only they are looked at again.

    Args:
        what: names what is shown where the address alone does not, such as a dialog.
    """
    page.evaluate(Axe().axe_script)
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(AFTER_A_FRAME)  # the page's own script looks at what can be scrolled now
        wide = page.evaluate("document.documentElement.scrollWidth") - width
        found += [f"at {width} px: {wide} px too wide"] * (wide > 0)
        for scheme, options in SCHEMES.items():
            page.emulate_media(color_scheme=scheme)
            page.evaluate(AFTER_ALL_MOTION)
            answer = page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"], **options})
            found += [
                f"at {width} px, {scheme}: {each['id']}: {each['help']}:"
                f" {[node['html'][:150] for node in each['nodes'][:3]]}"
                for each in answer["violations"]
                if each["impact"] in SERIOUS
            ]
    assert not found, f"{page.url} {what}:\n" + "\n".join(found)
