"""Every page and every dialog, wide and narrow, light and dark, as axe-core judges it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import assert_accessible, chromium, log_in_as, log_in_as_admin, page
from tests.stack import Stack, eventually, free_port, get_page
from tests.stopping import worker_held_up

__all__ = ["chromium", "page"]


@pytest.fixture
def ids(stack: Stack, folder: Path) -> dict[str, str]:
    """Return the ids of services, images and jobs of a node on which much has happened."""
    port = free_port()
    server = f"python3 -u -m http.server {port} --bind 127.0.0.1"
    web = stack.create(*server.split(), options=("--name", "web", "-e", "TOKEN=secret"))
    eventually(lambda: get_page(port))
    before, image = (stack.dump(web, "--leave-running") for _ in range(2))
    stack.mhctl("service", "create", "--name", "broken", "--", "no-such-program", check=False)
    log = folder / "a-log-with-a-name-that-is-as-long-as-some-have.txt"
    writer = stack.create("sh", "-c", f"exec 3>>{log}; exec sleep 1000", options=("--name", "writer"))
    assert eventually(log.exists)
    dumped = stack.dump(writer)
    log.write_text("new\n")
    stack.mhctl("service", "restore", "--from", dumped, check=False)
    for each in (before, image, dumped):
        stack.show("image", each)  # it waits until somebody has read what is in it
    looked = stack.api("POST", f"services/{web}/check?wait=30", {}).body
    checked = stack.api("POST", "check?wait=30").body
    jobs = stack.api("GET", "jobs").body
    ended = {(job["kind"], job["status"], job["service"]): job["object_id"] for job in jobs}
    broken = next(job["object_id"] for job in jobs if job["status"] == "failed" and job["kind"] != "restore")
    return {
        "web": web,
        "writer": writer,
        "before": before,
        "image": image,
        "succeeded": ended["dump", "succeeded", web],
        "failed": broken,
        "refused": ended["restore", "failed", writer],
        "dry run": looked["object_id"],
        "check": checked["object_id"],
    }


def test_every_page_is_accessible(stack: Stack, ids: dict[str, str], page: Page) -> None:
    page.goto("/login/")
    assert_accessible(page)
    log_in_as_admin(page, stack)
    web, image = ids["web"], ids["image"]
    for address in (
        "/",
        "/services/",
        "/services/?q=nothing",
        "/services/new/",
        f"/services/bulk/?do=stop&id={web}&id={ids['writer']}",
        f"/services/{web}/",
        f"/services/{ids['writer']}/",
        f"/services/{web}/logs/",
        f"/services/{web}/logs/?q=GET",
        f"/services/{web}/now/",
        f"/services/{web}/dump/",
        "/services/nope/",
        "/images/",
        f"/images/{image}/",
        "/images/compare/",
        f"/images/compare/?a={ids['before']}&b={image}",
        "/images/prune/",
        "/jobs/",
        f"/jobs/{ids['succeeded']}/",
        f"/jobs/{ids['failed']}/",
        f"/jobs/{ids['dry run']}/",
        f"/jobs/{ids['check']}/",
        "/audit/",
        "/account/tokens/",
        "/account/password/",
        "/nope/",
    ):
        page.goto(address)
        if address == f"/services/{web}/":
            expect(page.locator("[data-now]")).to_contain_text("http.server")
        assert_accessible(page)
    for address in (f"/services/{web}/", f"/images/{image}/"):
        page.goto(address)
        page.get_by_role("button", name=re.compile("^Show (its environment|values)$")).click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Environment")
        assert_accessible(page, "shows an environment")
    next((stack.state / "images" / image).glob("pages-*.img")).write_bytes(b"not what it was")
    stack.mhctl("image", "verify", image, check=False)
    page.goto(f"/images/{image}/")
    expect(page.get_by_role("heading", name="It is damaged")).to_be_visible()
    assert_accessible(page, "is damaged")
    page.goto("/account/tokens/")
    page.get_by_label("What it is for").fill("a laptop")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator(".new-card")).to_contain_text("Your new token")
    assert_accessible(page, "shows a token")


def test_what_is_seldom_seen_is_accessible(stack: Stack, page: Page) -> None:
    page.goto("/login/")
    too_much = "field => { field.value = 'x'.repeat(2 << 20); field.form.submit(); }"
    page.get_by_label("Name").evaluate(too_much)
    expect(page.get_by_role("heading", level=1)).to_have_text("This request was refused")
    assert_accessible(page, "refuses what is too large")
    for _ in range(5):
        page.goto("/login/")
        page.get_by_label("Name").fill("guesser")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Wait a little")
    assert_accessible(page, "after five failed logins")
    log_in_as_admin(page, stack)
    for address in (
        *("/", "/services/", "/services/bulk/?do=dump", "/images/", "/images/compare/", "/images/prune/"),
        *("/jobs/?q=nothing", "/audit/?q=nothing"),
    ):
        page.goto(address)
        expect(page.locator(".empty, form.dialog p").first).to_be_visible()
        assert_accessible(page, "with nothing in it")
    with broken_audit(stack):
        page.goto("/audit/")
        expect(page.get_by_role("heading", level=1)).to_have_text("A fault in Miehistö")
        assert_accessible(page, "with a fault")


def test_what_only_some_see_is_accessible(stack: Stack, ids: dict[str, str], page: Page) -> None:
    image = ids["image"]
    with closing(sqlite3.connect(stack.state / "database/db.sqlite3", timeout=20)) as rows, rows:
        origin = """'$.origin', json('{"imported_by": "somebody"}')"""
        rows.execute(
            f"UPDATE images_image SET manifest = json_set(manifest, {origin}) WHERE id = ?", (image,)
        )
    log_in_as(page, stack, "operator")
    for address, said in (
        ("/services/", "running"),
        ("/images/", "sealed"),
        (f"/images/{image}/", "It was imported by somebody"),
        (f"/images/{image}/restore/", "imported"),
        (f"/images/{ids['before']}/", "only an admin can bring it back"),
        (f"/services/{ids['writer']}/", "only an admin can bring it back"),
        (f"/services/{ids['web']}/dump/", "only an admin can bring it back"),
    ):
        page.goto(address)
        expect(page.get_by_role("main")).to_contain_text(said)
        assert_accessible(page, "of an operator")
    with worker_held_up(stack):
        with closing(sqlite3.connect(stack.state / "database/db.sqlite3", timeout=20)) as rows, rows:
            rows.execute("UPDATE images_image SET is_read = 0 WHERE id = ?", (image,))
        page.goto(f"/images/{image}/")
        expect(page.get_by_role("main")).to_contain_text("The worker has not looked into it yet")
        assert_accessible(page, "before it is read")


@contextmanager
def broken_audit(stack: Stack) -> Iterator[None]:
    """Break the newest row of the audit for the block."""

    def say(detail: str) -> str:
        with closing(sqlite3.connect(stack.state / "database/db.sqlite3", timeout=20)) as rows, rows:
            rows.execute("PRAGMA ignore_check_constraints=ON")
            newest = "FROM services_auditevent ORDER BY id DESC LIMIT 1"
            pk, before = rows.execute(f"SELECT id, detail {newest}").fetchone()
            rows.execute("UPDATE services_auditevent SET detail = ? WHERE id = ?", (detail, pk))
            return str(before)

    before = say("{")
    try:
        yield
    finally:
        say(before)


def test_every_dialog_is_accessible(stack: Stack, ids: dict[str, str], page: Page) -> None:
    log_in_as_admin(page, stack)
    web, writer = f"/services/{ids['web']}/", f"/services/{ids['writer']}/"
    image, refused = f"/images/{ids['image']}/", f"/jobs/{ids['refused']}/"
    for address, opener, shown in (
        ("/services/", "New service", "Create and start"),
        (web, "Dump", "Yes: nothing was found"),
        (web, "Restart", "run again from the beginning"),
        (web, "Stop", "SIGTERM"),
        (web, "Schedule", "Images to keep"),
        (web, "Change", "Restore it after a boot"),
        (web, "Delete", "Stop it first"),
        (writer, "Restore", "Even if its files have changed"),
        (writer, "Start", "empty memory"),
        (refused, "Restore it with the files as they are", "These files are not as the service left them"),
        (image, "Restore", "Service web is running. Stop it"),
        (image, "Verify", "compared with the sums"),
        (image, "Rename", "Only its name changes"),
        (image, "Delete", "cannot be undone"),
        ("/images/", "Free space", "can go"),
    ):
        page.goto(address)
        page.get_by_role("main").get_by_role("link", name=opener, exact=True).first.click()
        expect(page.get_by_role("dialog")).to_contain_text(shown)
        assert_accessible(page, f"after {opener}")
    # A dialog may lead to another.
    page.goto(f"/images/{ids['before']}/")
    page.get_by_role("main").get_by_role("link", name="Restore", exact=True).click()
    expect(page.get_by_role("dialog")).to_contain_text("There is a newer sound one")
    assert_accessible(page, "of an older image")
    page.get_by_role("dialog").get_by_role("link", name=re.compile("^made ")).click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_contain_text(ids["image"][:12])
    expect(page.get_by_role("dialog")).not_to_contain_text("newer")
    page.goto("/services/")
    page.get_by_label("Choose web").check()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("dialog")).to_contain_text("Stop 1 service")
    assert_accessible(page, "with a dialog for many")


def test_every_page_of_djangos_admin_is_accessible(stack: Stack, ids: dict[str, str], page: Page) -> None:
    page.goto("/login/")
    page.get_by_label("Name").fill("admin")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()  # a row of the failed logins
    log_in_as_admin(page, stack)
    page.goto("/admin/")
    lists = _links(page, "#content a[href]", r"/admin/\w+/\w+/$")
    assert len(lists) > 15, lists
    seen = ["/admin/", "/admin/password_change/", *_links(page, "#content a[href]", r"/admin/\w+/$")]
    for address in lists:
        page.goto(address)
        seen.append(address)
        rows = _links(page, "#result_list th a[href]", "^" + address)
        seen += _links(page, "#content a[href]", "^" + address + "add/$")
        if rows:
            seen.append(rows[0])
            page.goto(rows[0])
            within = rows[0].removesuffix("change/")
            seen += _links(page, "#content a[href]", "^" + within + "(delete|history)/$")
    seen += ["/admin/auth/user/1/password/", "/admin/services/service/?q=nothing", "/admin/services/nope/"]
    assert len(seen) > 35, seen
    for address in dict.fromkeys(seen):
        page.goto(address)
        assert_accessible(page)
    for model, action, asks in (
        ("services/service", "Stop", "Stop: are you sure?"),
        ("images/image", "Restore", "Restore: are you sure?"),
        ("auth/group", "Delete selected groups", "Delete multiple objects"),
    ):
        page.goto(f"/admin/{model}/")
        page.locator("#result_list .action-select").first.check()
        page.get_by_label("Action:").select_option(label=action)
        page.locator("button[name=index]").click()
        expect(page.get_by_role("heading", name=asks)).to_be_visible()
        assert_accessible(page, action)
    page.goto("/admin/auth/user/1/change/")
    expect(page.get_by_label("Last login, Date")).to_have_attribute("name", "last_login_0")


def _links(page: Page, within: str, pattern: str) -> list[str]:
    """Return where the links lead to that fit, each once."""
    found = page.locator(within).evaluate_all("all => all.map(each => each.pathname)")
    return list(dict.fromkeys(each for each in found if re.search(pattern, each)))
