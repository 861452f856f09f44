"""What somebody chooses in a real browser: the options that a dump needs, and many services at once."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser import assert_accessible, chromium, log_in_as_admin, page
from tests.servers import PROGRAMS
from tests.stack import Stack, eventually

__all__ = ["chromium", "page"]

OFF_SCREEN = """Array.from(document.querySelectorAll("main :is(a, button, input, select)"))
    .filter((each) => each.checkVisibility({ visibilityProperty: true }))
    .map((each) => [each.getBoundingClientRect(), each.outerHTML])
    .filter(([box]) => box.left < 0 || box.right > innerWidth).map(([, html]) => html)"""
"""What can have the focus beside the page."""


def test_a_dry_run_names_the_options_and_a_failure_offers_them(
    page: Page, stack: Stack, folder: Path
) -> None:
    made = ["/usr/bin/python3", str(PROGRAMS / "constructs.py"), str(folder)]
    service = stack.create(*made, "tcp_not_accepted", "deleted_large", options=("--name", "picky"))
    never = stack.create(*made, "mptcp", options=("--name", "never"))
    assert eventually(lambda: "ready" in stack.log(service) and "ready" in stack.log(never))
    log_in_as_admin(page, stack)
    dialog = page.get_by_role("dialog")
    opener = page.get_by_role("link", name="Dump", exact=True)

    page.goto(f"/services/{never}/")
    opener.click()
    expect(dialog).to_contain_text("No: it cannot be dumped as it is now.")
    expect(dialog.get_by_role("listitem")).to_contain_text("multipath TCP")
    expect(dialog.get_by_role("button", name="Choose it")).to_have_count(0)

    page.goto(f"/services/{service}/")
    opener.click()
    left_out = dialog.get_by_label("Leave out connections that it has not accepted yet")
    deleted = dialog.get_by_label("Deleted files up to (MiB)")
    expect(dialog).to_contain_text("Yes, with these options:")
    assert_accessible(page, "with options to choose")
    page.set_viewport_size({"width": 1280, "height": 900})
    for field in (left_out, deleted):
        name = field.evaluate("field => field.name")
        dialog.locator(f"[data-choose={name}]").click()
        expect(field).to_be_focused()
        expect(dialog.locator(f"[data-choose={name}]")).to_have_count(0)
    expect(left_out).to_be_checked()
    expect(deleted).to_have_value("261")
    expect(dialog).to_contain_text("Yes: nothing was found")
    dialog.get_by_label("Leave it running").check()
    dialog.get_by_role("button", name="Dump").click()
    expect(page.locator(".title .status")).to_have_text("succeeded")

    # Without them, one failure after the other, each with a button that helps.
    page.goto(f"/services/{service}/dump/")
    page.get_by_role("button", name="Dump", exact=True).click()
    for why, button in (
        ("A client was just connecting", "Leave out connections that were not accepted"),
        ("holds a deleted file open", "Take the deleted file into the image"),
    ):
        expect(page.locator(".bad-card h2")).to_contain_text(why)
        page.get_by_role("button", name=button).click()
    expect(page.locator(".title .status")).to_have_text("succeeded")
    asked = stack.show("job", page.url.rstrip("/").rpartition("/")[2])["options"]
    assert asked == {"leave_running": False, "tcp_skip_in_flight": True, "ghost_limit": 261 << 20}


def test_many_at_once(page: Page, stack: Stack) -> None:
    for name in ("one", "two"):
        stack.create("sleep", "1000", options=("--name", name))
    log_in_as_admin(page, stack)
    dialog = page.get_by_role("dialog")

    def succeed(jobs: int) -> None:
        for at in range(jobs):
            expect(page.locator("main tbody tr").nth(at).locator(".status")).to_have_text("succeeded")

    for verb in ("Dump", "Restore", "Dump"):
        page.goto("/services/")
        page.locator("[data-all]").check()
        page.get_by_role("button", name=verb, exact=True).click()
        expect(dialog.get_by_role("heading")).to_have_text(f"{verb} 2 services")
        dialog.get_by_role("button", name=verb).click()
        expect(page.locator("main")).to_contain_text(f"Asked for 2 {verb.lower()} jobs.")
        succeed(2)
    page.goto("/images/")
    page.get_by_role("link", name="Free space").click()
    expect(dialog).to_contain_text("2 images can go")
    kept = dialog.get_by_role("checkbox").first
    kept.uncheck()
    dialog.get_by_role("button", name="Delete those chosen").click()
    expect(page.locator("main")).to_contain_text("Asked for the deletion of 1 image;")
    succeed(1)
    assert len(stack.api("GET", "images").body) == 3
    page.goto("/images/")
    page.get_by_role("link", name="Free space").click()
    expect(dialog).to_contain_text("1 image can go")


def test_what_is_typed_wrongly_is_mended_where_it_stands(page: Page, stack: Stack) -> None:
    service = stack.create("sleep", "1000", options=("--name", "web"))
    log_in_as_admin(page, stack)
    page.goto(f"/services/{service}/")
    page.get_by_role("link", name="Dump", exact=True).click()
    dialog, form = page.get_by_role("dialog"), page.get_by_role("main")
    expect(dialog).to_contain_text("Yes: nothing was found")
    dialog.get_by_text("More options").click()
    dialog.get_by_label("Carry the data in").fill("tmp")
    dialog.get_by_label("Leave it running").check()
    expect(dialog.get_by_role("alert")).to_contain_text("“Carry the data in” must be an absolute path")
    dialog.get_by_role("button", name="Dump").click()
    expect(form.get_by_role("alert")).to_contain_text("“Carry the data in” must be an absolute path")
    expect(form.get_by_label("Carry the data in")).to_be_focused()
    expect(form.get_by_label("Carry the data in")).to_have_css("border-top-color", "rgb(173, 34, 26)")
    assert_accessible(page, "with what is wrong")
    form.get_by_label("Carry the data in").fill("")
    form.get_by_label("Leave it running").focus()
    expect(form).to_contain_text("Yes: nothing was found")
    form.get_by_role("button", name="Dump").click()
    expect(page.locator(".title .status")).to_have_text("succeeded")
    assert stack.show("service", service)["status"] == "running", "the tick was kept"


def test_a_table_can_be_sorted_and_all_of_it_chosen_on_a_phone(page: Page, stack: Stack) -> None:
    for name in ("anna", "berta"):
        stack.create("sleep", "1000", options=("--name", name))
    log_in_as_admin(page, stack)
    for width in (390, 360):
        page.set_viewport_size({"width": width, "height": 800})
        for address in ("/services/", "/images/", "/jobs/", "/audit/", "/account/tokens/"):
            page.goto(address)
            assert page.evaluate(OFF_SCREEN) == [], f"{address} at {width} px: Tab leads there"
        page.goto("/services/")
        names = page.locator("tbody .name")
        for order in (["anna", "berta"], ["berta", "anna"]):
            by_name = page.locator("thead").get_by_role("link", name="Service")
            expect(by_name).to_be_in_viewport(ratio=1)
            by_name.click()
            expect(names).to_have_text(order)
        everyone = page.get_by_label("Choose all shown")
        expect(everyone).to_be_in_viewport(ratio=1)
        everyone.check()
        expect(page.locator("tbody input:checked")).to_have_count(2)


def test_a_schedule_and_its_end(page: Page, stack: Stack) -> None:
    service = stack.create("sleep", "1000")
    log_in_as_admin(page, stack)
    page.goto(f"/services/{service}/")
    for had, every in (("", "1h"), ("1h", "")):
        page.get_by_role("link", name="Schedule", exact=True).click()
        dialog = page.get_by_role("dialog")
        field = dialog.get_by_label("Every", exact=True)
        expect(field).to_have_value(had)
        field.fill(every)
        dialog.get_by_label("Images to keep").fill("2")
        dialog.get_by_role("button", name="Save").click()
        told = page.locator("dl.facts", has_text="every 1h; 2 images kept")
        expect(told).to_have_count(1 if every else 0)
