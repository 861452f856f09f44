"""Everything can be asked for in a browser without JavaScript, too: each dialog is a page with a form."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser import chromium, log_in_as_admin, plain_page
from tests.stack import Stack, eventually, free_port, get_page
from tests.test_browser import held, server

__all__ = ["chromium", "plain_page"]


class Visitor:
    """Somebody before a page of the service "plain"."""

    def __init__(self, page: Page, stack: Stack) -> None:
        self.page, self.main = page, page.get_by_role("main")
        log_in_as_admin(page, stack)

    def open(self, link: str, **fields: str) -> None:
        """Follow a link, mostly to the page of an action, and fill its fields."""
        self.main.get_by_role("link", name=link, exact=True).first.click()
        for label, text in fields.items():
            self.main.get_by_label(label, exact=True).fill(text)

    def press(self, button: str) -> None:
        self.main.get_by_role("button", name=button, exact=True).click()

    def sees(self, text: str) -> None:
        expect(self.main).to_contain_text(text)

    def done(self, state: str) -> None:
        """Wait for the job, whose page loads itself again, and go to its service."""
        status = self.page.locator(".title .status")
        expect(status).to_have_text("succeeded")
        self.open("plain")
        expect(status).to_have_text(state)


@pytest.fixture
def visitor(plain_page: Page, stack: Stack) -> Visitor:
    return Visitor(plain_page, stack)


def test_a_service_from_its_beginning_to_its_end(visitor: Visitor, stack: Stack) -> None:
    page, main, port = visitor.page, visitor.main, free_port()
    page.goto("/services/new/")
    main.get_by_label("Command", exact=True).fill(server(port))
    main.get_by_label("Name", exact=True).fill("plain")
    visitor.press("Create and start")
    visitor.done("running")

    assert eventually(
        lambda: get_page(port) and '"GET / HTTP/1.1" 200' in stack.mhctl("service", "logs", "plain").out
    )
    main.get_by_label("Search the log").fill("HTTP/1.1")
    visitor.press("Search all of it")
    visitor.sees("with this text")
    expect(main.locator("pre.log")).to_contain_text('"GET / HTTP/1.1" 200')
    visitor.open("plain")

    visitor.open("Change")
    main.get_by_label("Restore it after a boot").check()
    visitor.press("Save")
    visitor.sees("it is restored")
    for every in ("1h", ""):
        visitor.open("Schedule", Every=every)
        if every:
            times = main.get_by_label("Or at times of day")
            times.fill("0 3 * * *")
            visitor.press("Save")
            visitor.sees("Empty one of the two fields.")
            expect(main.get_by_label("Every", exact=True)).to_have_value(every)
            expect(times).to_have_value("0 3 * * *")
            times.fill("")
        visitor.press("Save")
        expect(main.locator("dl.facts", has_text="every 1h")).to_have_count(1 if every else 0)

    page.goto("/services/?q=plain")
    visitor.open("Dump plain")
    visitor.press("Would this work? (dry run)")
    visitor.sees("Yes: nothing was found")
    visitor.open("Dump")
    visitor.press("Dump")
    visitor.done("dumped")
    with held(port):
        visitor.open("Restore")
        visitor.press("Restore")
        visitor.sees(f"Port {port} is held by")
    visitor.press("Try again")
    visitor.done("running")
    visitor.open("Stop")
    visitor.press("Stop")
    visitor.done("stopped")
    visitor.open("Delete")
    visitor.press("Delete")
    expect(page.locator(".title .status")).to_have_text("succeeded")
    assert "plain" not in {service["name"] for service in stack.api("GET", "services?all=1").body}


def test_images_many_services_and_a_node(visitor: Visitor, stack: Stack) -> None:
    page, main = visitor.page, visitor.main
    older = stack.dump(stack.create("sleep", "1000", options=("--name", "plain")), "--leave-running")
    page.goto("/services/?q=plain")
    main.get_by_label("Choose plain").check()
    visitor.press("Dump")
    visitor.press("Dump")
    visitor.sees("Asked for 1 dump job.")
    visitor.open("dump")
    visitor.done("dumped")

    def images() -> list[str]:
        return [image["object_id"] for image in stack.api("GET", "images").body]

    [newest] = {*images()} - {older}
    page.goto(f"/images/{newest}/")
    visitor.open("Verify")
    visitor.press("Verify")
    visitor.done("dumped")
    page.goto(f"/images/{newest}/")
    expect(main.locator("dl.facts")).not_to_contain_text("not verified")
    visitor.open("Rename", Name="kept")
    visitor.press("Rename")
    expect(page.get_by_role("heading", level=1)).to_have_text("kept")
    page.goto("/images/")
    visitor.open("Free space")
    visitor.press("Delete those chosen")
    visitor.sees("Asked for the deletion of 1 image;")
    assert eventually(lambda: images() == [newest])

    page.goto("/")
    visitor.press("Check this node node-of-tests")
    visitor.sees("What this node can do")
