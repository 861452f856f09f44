"""Logging in and being kept out, one's own password, one's own tokens."""

import io
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from miehisto_web.addresses import client_address, proxies
from services.authentication import issue, user_of
from services.models import ApiToken, AuditEvent
from services.throttle import LOGINS, TOKENS, Failures
from tests.rows import member

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "long enough 1"


@pytest.fixture(autouse=True)
def nobody_failed_yet(settings: Any) -> Iterator[None]:
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.MD5PasswordHasher"
    ]  # the real one takes its time
    TOKENS.forget()
    LOGINS.forget()
    yield
    TOKENS.forget()
    LOGINS.forget()


@pytest.fixture
def ann() -> User:
    user = member("operator")
    user.set_password(PASSWORD)
    user.save()
    return user


def browser_of(user: User) -> Client:
    browser = Client()
    browser.force_login(user)
    return browser


def log_in(name: str, password: str, address: str = "192.0.2.1", **headers: str) -> int:
    form = {"username": name, "password": password}
    return Client(REMOTE_ADDR=address, headers=headers).post("/login/", form).status_code


def test_who_fails_five_times_waits_and_nobody_else(ann: User) -> None:
    assert [log_in(ann.username, "wrong") for _ in range(4)] == [200] * 4
    answer = Client(REMOTE_ADDR="192.0.2.1").post("/login/", {"username": ann.username, "password": "wrong"})
    assert answer.status_code == 429
    page = answer.content.decode()
    assert "Too many failed logins for this name from your address" in page
    assert re.search(r"again in 15 minutes, at .*\d\d:\d\d UTC", page)
    assert 800 < int(answer["Retry-After"]) <= 900
    assert log_in(ann.username, PASSWORD) == 429, "the right password is not even looked at"
    assert log_in(ann.username, PASSWORD, "192.0.2.2") == 302, "she comes in from elsewhere"
    other = member("viewer")
    other.set_password(PASSWORD)
    other.save()
    assert log_in(other.username, PASSWORD) == 302, "and another from there"


def test_a_lockout_ends_by_itself_or_by_an_administrator(ann: User) -> None:
    for _ in range(5):
        log_in(ann.username, "wrong")
    assert log_in(ann.username, PASSWORD) == 429
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=16))
    assert log_in(ann.username, PASSWORD) == 302
    for _ in range(5):
        log_in(ann.username, "wrong")
    call_command("axes_reset_username", ann.username, stdout=io.StringIO())
    assert log_in(ann.username, PASSWORD) == 302
    for _ in range(5):
        log_in(ann.username, "wrong")
    boss = browser_of(member("admin"))
    attempt = AccessAttempt.objects.get()
    assert boss.get("/admin/axes/accessattempt/").status_code == 200
    boss.post(f"/admin/axes/accessattempt/{attempt.pk}/delete/", {"post": "yes"})
    assert log_in(ann.username, PASSWORD) == 302


def test_one_address_that_tries_many_names_waits_too() -> None:
    codes = [log_in(f"name-{number}", "wrong") for number in range(LOGINS.limit + 1)]
    assert codes == [200] * LOGINS.limit + [429]
    assert log_in("name-0", "wrong", "192.0.2.2") == 200


def on_the_record() -> list[tuple[Any, ...]]:
    rows = AuditEvent.objects.order_by("pk").exclude(action="show_env")
    return list(rows.values_list("actor", "action", "outcome", "address", "detail"))


def test_a_lockout_is_on_the_record_once_however_often_is_tried_on(ann: User) -> None:
    for _ in range(9):
        log_in(ann.username, "wrong")
    told = on_the_record()
    assert told[:5] == [(ann.username, "login", "refused", "192.0.2.1", {})] * 5
    locked = {"counted": "name", "minutes": 15}
    assert told[5:] == [(ann.username, "locked_out", "refused", "192.0.2.1", locked)]
    page = browser_of(member("admin")).get("/audit/?action=locked_out").content.decode()
    assert "counted: name; minutes: 15" in page and page.count('<tr id="audit-') == 1

    # The next lockout of her is another, and one from elsewhere, too.
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=16))
    for address in ("192.0.2.1", "192.0.2.2"):
        for _ in range(6):
            log_in(ann.username, "wrong", address)
    kept_out = [address for _, action, _, address, _ in on_the_record() if action == "locked_out"]
    assert kept_out == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]


def test_a_stranger_who_tries_many_names_is_one_line_of_the_record() -> None:
    for number in range(LOGINS.limit * 2):
        log_in(f"a password, perhaps {number}", "wrong")
    for _ in range(9):
        log_in("nobody-here", "wrong", "192.0.2.2")
    assert on_the_record() == [
        ("", "locked_out", "refused", "192.0.2.1", {"counted": "address", "minutes": 1})
    ]


def test_the_password_is_not_kept_with_a_failed_login(ann: User) -> None:
    log_in(ann.username, "my other secret")
    attempt = AccessAttempt.objects.get()
    assert "my other secret" not in repr(vars(attempt))


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "who"),
    [
        ("192.0.2.1", "10.9.9.9", [], "192.0.2.1"),
        ("192.0.2.1", "10.9.9.9", ["10.0.0.0/8"], "192.0.2.1"),
        ("10.0.0.1", "203.0.113.5", ["10.0.0.0/8"], "203.0.113.5"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.5, 10.0.0.2", ["10.0.0.0/8"], "203.0.113.5"),
        ("10.0.0.1", "1.1.1.1, garbage\r\n", ["10.0.0.0/8"], "10.0.0.1"),
        ("10.0.0.1", "", ["10.0.0.0/8"], "10.0.0.1"),
        ("", "203.0.113.5", [], "unix"),
        ("", "203.0.113.5", ["unix"], "203.0.113.5"),
        ("::1", "2001:db8::7", ["::1"], "2001:db8::7"),
    ],
)
def test_only_a_proxy_of_our_own_says_who_asks(
    peer: str, forwarded: str, trusted: list[str], who: str
) -> None:
    assert client_address(peer, forwarded, proxies(trusted)) == who


def test_a_proxy_that_is_no_address_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ImproperlyConfigured):
        proxies(["somewhere"])


def test_a_forged_address_gains_no_more_tries(ann: User) -> None:
    codes = [log_in(ann.username, "wrong", **{"x-forwarded-for": f"203.0.113.{n}"}) for n in range(6)]
    assert codes == [200] * 4 + [429] * 2


def test_wrong_tokens_are_counted_and_right_ones_still_heard(ann: User) -> None:
    wrong = Client(headers={"authorization": "Bearer guess"})
    assert {wrong.get("/api/v1/services").status_code for _ in range(TOKENS.limit)} == {401}
    answer = wrong.get("/api/v1/services")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_guesses")
    assert 0 < int(answer["Retry-After"]) <= 60
    right = Client(headers={"authorization": f"Bearer {issue(ann)}"})
    assert right.get("/api/v1/services").status_code == 200


def test_counting_forgets_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    failures = Failures(2, 60, clock=lambda: now[0])
    assert [failures.count("a"), failures.count("a"), failures.wait("a"), failures.wait("b")] == [1, 2, 60, 0]
    now[0] = 61
    assert failures.wait("a") == 0 and failures.count("a") == 1
    monkeypatch.setattr("services.throttle.MOST_ADDRESSES", 3)
    for address in "abcdef":
        failures.count(address)
    assert len(failures._counts) == 3


def test_a_token_is_shown_once_lasts_as_long_as_said_and_ends_when_told(ann: User) -> None:
    browser = browser_of(ann)
    page = browser.post("/account/tokens/", {"label": "ci", "days": "7"})
    found = re.search(r'id="token">([^<]+)<', page.content.decode())
    assert found and user_of(found[1]) == ann
    assert "no-store" in page["Cache-Control"]
    assert found[1] not in browser.get("/account/tokens/").content.decode()
    token = ApiToken.objects.get()
    assert token.label == "ci" and token.expires_at
    assert timedelta(days=6) < token.expires_at - timezone.now() <= timedelta(days=7)
    assert browser.post(f"/account/tokens/{token.pk}/revoke/").status_code == 302
    assert user_of(found[1]) is None
    assert list(AuditEvent.objects.values_list("action", flat=True)) == ["revoke_token", "make_token"]
    for days in ("0", "-1", "many", "99999"):
        assert browser.post("/account/tokens/", {"label": "x", "days": days}).status_code == 422
    assert not ApiToken.objects.exists()


def test_nobody_touches_anothers_token(ann: User) -> None:
    token = issue(ann)
    row = ApiToken.objects.get()
    bob = browser_of(member("admin"))
    assert b"no tokens" in bob.get("/account/tokens/").content
    assert bob.post(f"/account/tokens/{row.pk}/revoke/").status_code == 404
    assert user_of(token) == ann
    ApiToken.objects.update(expires_at=timezone.now())
    assert user_of(token) is None, "it has ended"


def test_tokens_in_the_servers_shell(ann: User) -> None:
    def run(*words: str) -> str:
        out = io.StringIO()
        call_command("token", "--user", ann.username, *words, stdout=out)
        return out.getvalue()

    assert user_of(run("--label", "cron").strip()) == ann
    run("--days", "0")
    lines = run("--list").splitlines()
    assert len(lines) == 3 and "cron" in lines[1] and "never" in lines[2]
    run("--revoke", lines[1].split()[0])
    assert len(run("--list").splitlines()) == 2
    with pytest.raises(SystemExit):
        run("--revoke", "99999")


def test_a_new_password_ends_other_sessions(ann: User) -> None:
    here, elsewhere = browser_of(ann), browser_of(ann)
    form = {"old_password": PASSWORD, "new_password1": "another one 2", "new_password2": "another one 2"}
    assert (
        b"too common"
        in here.post(
            "/account/password/", {**form, "new_password1": "password12", "new_password2": "password12"}
        ).content
    )
    assert here.post("/account/password/", {**form, "old_password": "no"}).status_code == 200
    assert here.post("/account/password/", form).status_code == 302
    assert here.get("/").status_code == 200 and elsewhere.get("/").status_code == 302
    ann.refresh_from_db()
    assert ann.check_password("another one 2")


def test_the_admin_pages_have_no_door_of_their_own(ann: User) -> None:
    answer = Client().get("/admin/services/job/", follow=True)
    assert answer.redirect_chain[-1][0].startswith("/login/?next=")
    assert browser_of(ann).get("/admin/", follow=True).status_code == 403
    assert browser_of(member("admin")).get("/admin/").status_code == 200
    assert Client().post("/admin/login/", {"username": ann.username, "password": PASSWORD}).status_code == 302
    assert not AuditEvent.objects.filter(action="login").exists()


def test_an_empty_form_is_no_try() -> None:
    for sent in ({}, {"username": "anna"}, {"password": PASSWORD}):
        assert Client().post("/login/", sent).status_code == 200
    assert not AccessAttempt.objects.exists()
    assert not AuditEvent.objects.filter(action="login").exists()
