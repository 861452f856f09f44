"""An operator's day in a real browser, before a real node with a real CRIU."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Locator, Page, Route, expect

from tests.browser import (
    assert_accessible,
    chromium,
    connected,
    log_in_as,
    log_in_as_admin,
    page,
)
from tests.stack import Stack, eventually, free_port, get_page
from tests.stopping import stopped_at, worker_held_up

__all__ = ["chromium", "page"]


def server(port: int) -> str:
    return f"python3 -u -m http.server {port} --bind 127.0.0.1 --directory /usr/share/common-licenses"


@contextmanager
def held(port: int) -> Iterator[None]:
    """Hold a port as another program would."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        holder.listen()
        yield


def create(page: Page, name: str, port: int) -> str:
    """Create a service by the dialog and return its id."""
    page.goto("/services/")
    page.get_by_role("link", name="New service").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Command", exact=True).fill("no-such-program --at-all")
    dialog.get_by_label("Name", exact=True).fill(name)
    expect(dialog).to_contain_text("does not exist")
    dialog.get_by_label("Command", exact=True).fill(server(port))
    dialog.get_by_label("Name", exact=True).focus()
    expect(dialog).to_contain_text("Found:")
    dialog.get_by_role("button", name="Create and start").click()
    expect(page.locator(".title .status")).to_have_text("succeeded")
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    return page.url.rstrip("/").rpartition("/")[2]


def test_an_operators_day(page: Page, stack: Stack) -> None:
    log_in_as_admin(page, stack)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    port = free_port()
    service = create(page, "web", port)

    # Its log arrives while somebody looks.
    eventually(lambda: get_page(port))
    expect(page.locator("pre.log")).to_contain_text('"GET / HTTP/1.1" 200')
    # A screen reader tells what somebody did with it, and does not read it out line by line.
    expect(page.locator("[role=log], [role=status] pre, [aria-live] pre")).to_have_count(0)
    page.get_by_label("Search the log").fill("HTTP/1.1")
    expect(page.locator("[data-log-said]")).to_contain_text("lines with this text")
    page.get_by_label("Search the log").fill("")
    expect(page.locator("[data-now]")).to_contain_text(f"127.0.0.1:{port}")

    # A dump with the dialog: the dry run says yes before, the page turns by itself afterwards.
    connected(page)
    mark(page)
    elsewhere = page.context.new_page()
    elsewhere.goto(f"/services/{service}/")
    elsewhere.get_by_role("link", name="Dump", exact=True).click()
    expect(elsewhere.get_by_role("dialog")).to_contain_text("Yes: nothing was found")
    elsewhere.get_by_label("Leave it running").check()
    elsewhere.get_by_role("dialog").get_by_role("button", name="Dump").click()
    expect(elsewhere.locator(".title .status")).to_have_text("succeeded")
    for step in ("waiting in the queue", "freezing"):
        expect(elsewhere.locator(".waterfall")).to_contain_text(step)
    elsewhere.goto(f"/services/{service}/dump/")  # as a page, as without JavaScript
    elsewhere.get_by_role("button", name="Dump").click()
    page.bring_to_front()
    expect(page.locator(".title .status")).to_have_text("dumped")
    expect(page.locator(".life .hung")).not_to_have_count(0)
    assert is_marked(page), "it was loaded again"

    # What is in the image, and what differs from the other.
    elsewhere.bring_to_front()
    expect(elsewhere.locator(".title .status")).to_have_text("succeeded")
    elsewhere.goto(str(elsewhere.locator("a[href^='/images/']").last.get_attribute("href")))
    expect(elsewhere.locator("#part-image")).to_contain_text("http.server")
    expect(elsewhere.locator("#part-image")).to_contain_text(f"127.0.0.1:{port}")
    elsewhere.get_by_role("link", name=re.compile("^with ")).first.click()
    expect(elsewhere.get_by_role("heading", level=1)).to_have_text("Compare two images")
    expect(elsewhere.locator("main")).to_contain_text("Memory by kind")
    ends = "each => each.getBoundingClientRect().bottom"
    chosen, button = elsewhere.get_by_label("One"), elsewhere.get_by_role("button", name="Compare")
    assert chosen.evaluate(ends) == button.evaluate(ends)
    elsewhere.close()

    # A restore that cannot be, and the button that helps once the port is free.
    with held(port):
        page.get_by_role("link", name="Restore", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="Restore").click()
        expect(page.locator(".bad-card")).to_contain_text(f"Port {port} is held by")
        expect(page.locator("mark.wrong").first).to_contain_text("Address already in use")
        expect(page.locator(".waterfall tr", has_text="failed here")).to_contain_text("restoring")
        assert_accessible(page, "with CRIU's log")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_url(re.compile("/jobs/"))
    expect(page.locator(".title .status")).to_have_text("succeeded")
    assert eventually(lambda: get_page(port))


def test_the_audits_csv_is_of_the_filters_that_are_set(page: Page, stack: Stack) -> None:
    stack.mhctl("service", "stop", stack.create("sleep", "1000", options=("--name", "web")))
    log_in_as_admin(page, stack)
    page.goto("/audit/")
    csv = page.get_by_role("link", name="CSV")
    expect(csv).to_have_attribute("href", "/audit.csv?")
    page.get_by_role("combobox", name="What").select_option("stop")
    expect(csv).to_have_attribute("href", re.compile(r"^/audit\.csv\?.*action=stop"))
    page.get_by_role("searchbox").fill("nobody-at-all")
    expect(csv).to_have_count(0)
    page.get_by_role("searchbox").fill("web")
    expect(csv).to_have_attribute("href", re.compile(r"q=web.*action=stop"))
    rows = page.request.get(str(csv.get_attribute("href"))).text().splitlines()[1:]
    assert rows and all(",stop,service," in row for row in rows)


def test_a_moment_is_told_by_how_long_ago_and_keeps_when_it_was(page: Page, stack: Stack) -> None:
    service = stack.create("sleep", "1000")
    log_in_as_admin(page, stack)
    page.goto(f"/services/{service}/")
    made = page.locator("dl.facts time").last
    expect(made).to_have_text(re.compile("ago$|^just now$"))
    expect(made).to_have_attribute("title", re.compile(r"^[^(]+ \([-\d]{10} [:\d]{8} UTC\)$"))


def test_by_the_keyboard_alone(page: Page, stack: Stack) -> None:
    port = free_port()
    service = stack.create(*server(port).split(), options=("--name", "keys"))
    log_in_as_admin(page, stack)
    for verb, state in (("Dump", "dumped"), ("Restore", "running")):
        page.goto(f"/services/{service}/")
        connected(page)
        button = page.get_by_role("link", name=verb, exact=True)
        press_tab_until(page, button)
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        press_tab_until(page, page.get_by_role("dialog").get_by_role("button", name=verb))
        page.keyboard.press("Enter")
        expect(page.locator(".title .status")).to_have_text("succeeded")
        assert stack.show("service", service)["status"] == state
    page.goto(f"/services/{service}/")
    page.get_by_role("link", name="Stop", exact=True).press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def press_tab_until(page: Page, wanted: Locator) -> None:
    """Press Tab until the element has the focus, as often as a patient person would."""
    for _ in range(60):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {wanted}")


def test_a_viewer_sees_and_cannot_act(page: Page, stack: Stack) -> None:
    service = stack.create("sleep", "1000", options=("--name", "calm"))
    log_in_as(page, stack, "viewer")
    page.goto(f"/services/{service}/")
    expect(page.get_by_role("heading", level=1)).to_have_text("calm")
    for verb in ("Dump", "Stop", "Delete"):
        expect(page.get_by_role("link", name=verb)).to_have_count(0)
    assert_accessible(page, "of a viewer")
    page.goto("/audit/")
    expect(page.get_by_role("heading", level=1)).to_have_text("You may not do this")
    assert_accessible(page)
    cookies = {each["name"]: each["value"] for each in page.context.cookies()}
    answer = page.request.post(
        f"/services/{service}/stop/", form={}, headers={"X-CSRFToken": cookies["csrftoken"]}
    )
    assert answer.status == 403
    assert "calm" in stack.mhctl("service", "list", "--json").out


def test_a_waterfall_moves_while_its_job_runs(page: Page, stack: Stack) -> None:
    # So much memory that CRIU can be stopped before it has written all of it.
    heavy = "import os, time; held = os.urandom(1 << 20) * 300; print('ready', flush=True); time.sleep(1000)"
    service = stack.create("python3", "-c", heavy)
    assert eventually(lambda: "ready" in stack.log(service))
    with worker_held_up(stack):
        cancelled = stack.mhctl("service", "dump", service, "--no-wait").out.strip()
        log_in_as_admin(page, stack)
        page.goto(f"/jobs/{cancelled}/")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".title .status")).to_have_text("cancelled")
        page.get_by_role("button", name="Try again").click()
        expect(unfinished(page)).to_contain_text("waiting in the queue")
        assert_accessible(page, "while it waits")
        connected(page)
        mark(page)
    criu = stopped_at(stack, service, "dump.log", "Dumping pages")
    try:
        expect(unfinished(page)).to_contain_text("freezing and writing memory")
        expect(page.locator(".waterfall tr", has_text="waiting in the queue")).not_to_contain_text("…")
        assert_accessible(page, "while it runs")
    finally:
        criu.signal(signal.SIGCONT)
    expect(page.locator(".title .status")).to_have_text("succeeded")
    expect(unfinished(page)).to_have_count(0)
    expect(page.locator(".waterfall")).to_contain_text("freezing and writing memory")
    assert is_marked(page), "it was loaded again"
    assert stack.show("job", cancelled)["status"] == "cancelled"


def unfinished(page: Page) -> Locator:
    """Return the steps of a waterfall that go on."""
    return page.locator(".waterfall tbody tr", has_text="…")


def mark(page: Page) -> None:
    """Leave something on a page that does not outlive its being loaded again."""
    page.evaluate("window.marked = true")


def is_marked(page: Page) -> bool:
    return bool(page.evaluate("window.marked === true"))


def test_a_page_says_when_its_stream_breaks_and_recovers(page: Page, stack: Stack) -> None:
    log_in_as_admin(page, stack)
    page.goto("/services/")
    connected(page)
    stack.stop()
    expect(page.locator("#stream")).to_contain_text("The connection is lost")
    stack.start()
    expect(page.locator("#stream")).to_be_hidden()
    service = stack.create("sleep", "1000", options=("--name", "after"))
    expect(page.locator(f"#service-{service}")).to_contain_text("running")

    # The log says so where it is read, and goes on.
    says = ["sh", "-c", "while sleep 0.2; do date +%s.%N; done"]
    talking = stack.create(*says, options=("--name", "talking"))
    page.goto(f"/services/{talking}/logs/")
    log, state = page.locator("pre.log"), page.locator("[data-log-state]")
    expect(log).to_contain_text(".")
    stack.stop()
    expect(state).to_contain_text("The connection is lost")
    stack.start()
    expect(state).to_be_empty()
    for _ in range(2):  # the first may have been among the last lines that a stream begins with
        before = log.text_content()
        expect(log).not_to_have_text(before or "")

    # It can be held; what comes meanwhile is counted, and then shown.
    page.get_by_role("button", name="Pause").click()
    held_back = log.text_content() or ""
    expect(state).to_have_text(re.compile(r"([5-9]|\d\d) new lines are held back"))
    assert log.text_content() == held_back
    page.get_by_role("button", name="Go on").click()
    assert (log.text_content() or "").startswith(held_back)
    assert (log.text_content() or "").count("\n") >= held_back.count("\n") + 5
    expect(state).to_be_empty()


def test_a_services_page_follows_it_by_one_stream(page: Page, stack: Stack) -> None:
    streams: list[str] = []
    page.on(
        "request", lambda asked: streams.append(asked.url) if asked.resource_type == "eventsource" else None
    )
    log_in_as_admin(page, stack)
    connected(page)
    service = stack.create("sh", "-c", "echo hello; exec sleep 1000")
    streams.clear()
    page.goto(f"/services/{service}/")
    expect(page.locator("pre.log")).to_contain_text("hello")
    expect(page.locator("[data-now]")).to_contain_text("sleep 1000")
    pid = page.locator("[data-now] tr[id^=now-]").last.get_attribute("id")
    image = stack.dump(service)
    expect(page.locator("[data-now]")).to_have_count(0)
    stack.restore(image)
    expect(page.locator("[data-now]")).to_contain_text("sleep 1000")
    expect(page.locator(f"#{pid}")).to_have_count(0)
    assert len(streams) == 1, streams


def test_what_a_service_does_is_asked_for_each_ten_seconds_whatever_else_changes(
    page: Page, stack: Stack
) -> None:
    asked: list[Route] = []

    def questions() -> list[Route]:
        page.wait_for_timeout(1)  # in which Playwright tells of them
        return asked

    log_in_as_admin(page, stack)
    service = stack.create("sleep", "1000")
    page.clock.install()
    page.route("**/now/", lambda route: asked.append(route))  # noqa: PLW0108 - it is looked into
    page.goto(f"/services/{service}/")
    page.clock.run_for(100)
    eventually(questions)
    connected(page)

    def renamed(name: str) -> None:
        stack.mhctl("service", "rename", service, name)
        expect(page.get_by_role("heading", level=1)).to_have_text(name)

    page.clock.pause_at(page.evaluate("Date.now() / 1000 + 1"))
    page.clock.run_for(6_000)
    renamed("while-it-is-asked")
    asked.pop().continue_()
    expect(page.locator("[data-now]")).to_contain_text("sleep 1000")
    renamed("after-its-answer")
    page.clock.run_for(3_500)  # 9.5 s, and a second before the clock stood still
    assert eventually(questions, 5), "it is not asked again"
    asked.pop().continue_()


def test_a_dry_run_that_cannot_be_asked_for_says_so_in_its_dialog(page: Page, stack: Stack) -> None:
    log_in_as_admin(page, stack)
    service = stack.create("sleep", "1000")
    page.route("**/check/", lambda route: route.fulfill(status=502, body="bad gateway"))
    page.goto(f"/services/{service}/")
    page.get_by_role("link", name="Dump", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("answered with an error (502)")
