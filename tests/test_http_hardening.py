"""What a stranger on the network can do to a real site: too much, too slowly, forged or broken requests."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import select
import socket
from collections.abc import Iterator

import pytest

from tests.stack import Stack, eventually, living

MIB = 1024 * 1024


def send(stack: Stack, data: bytes, *, within: float = 15) -> bytes:
    """Send bytes as they are over a connection of their own; return all that comes until it is closed."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=within) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(data)
        return rest(line)


def rest(line: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(65536):
            said += piece
    return said


def head(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode()


def status_of(said: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", said)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(before[0], count), before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def closed(line: socket.socket) -> bool:
    look = select.poll()
    look.register(line, select.POLLIN)
    if not look.poll(0):
        return False
    try:
        return line.recv(65536) == b""
    except ConnectionError:
        return True


def test_slow_senders_stop_nobody_else_and_are_let_go(stack: Stack) -> None:
    """200 half heads, 20 half bodies and then a thousand more half heads: the site answers, and hangs up."""
    with many_descriptors(4096), contextlib.ExitStack() as opened:

        def open_with(data: bytes) -> socket.socket:
            line = socket.create_connection(("127.0.0.1", stack.port), timeout=15)
            opened.enter_context(line)
            line.sendall(data)
            return line

        post = head("/api/v1/services", "Content-Length: 1000", method="POST")
        halves = [open_with(b"GET / HTTP/1.1\r\nHost: loc") for _ in range(200)]
        bodies = [open_with(post + b'{"args"') for _ in range(20)]
        for _ in range(20):
            assert stack.api("GET", "node").status == 200
        crowd = [open_with(b"GET / HTTP/1.1\r\n") for _ in range(1000)]
        assert stack.api("GET", "node").status == 200
        assert eventually(lambda: any(closed(line) for line in halves)), "the longest waiting gave way"
        for line in bodies:
            answer = rest(line)
            assert status_of(answer) == 408 and b"too slowly" in answer
        assert eventually(lambda: all(closed(line) for line in halves + crowd), within=20)
    assert stack.api("GET", "node").status == 200


def test_a_body_is_one_mebibyte_at_most_announced_or_not(stack: Stack) -> None:
    for path in ("/api/v1/services", "/login/"):
        announced = send(stack, head(path, f"Content-Length: {50 * 1024 * MIB}", method="POST") + b"x" * 100)
        assert (status_of(announced), b"1 MiB" in announced) == (413, True), path
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        unannounced = head(path, "Transfer-Encoding: chunked", method="POST")
        chunked = send(stack, unannounced + 64 * chunk + b"0\r\n\r\n")
        assert (status_of(chunked), b"1 MiB" in chunked) == (413, True), path
        # Of one that goes on for ever the answer is lost: the sender hears of the closed connection first.
        endless = send(stack, unannounced + 256 * chunk)
        assert status_of(endless) in {413, 0}, path
    assert stack.api("GET", "node").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2f..%2fmiehisto_web/settings.py",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/static/../../../../etc/passwd",
        "/static//etc/passwd",
        "/static/..%5c..%5cetc/passwd",
        "/static/%c0%ae%c0%ae/etc/passwd",
        "/static/miehisto.css%00.html",
        "/services/..%2f..%2f..%2fetc%2fpasswd/logs/",
        "/api/v1/services/..%2f..%2fetc%2fpasswd/logs",
        "/api/v1/services/%2e%2e/logs",
        "/api/v1/services/%00/logs",
        "/api/v1/services/%ff%fe/logs",
        "/api/v1/services/%E2%80%AE/logs",
        "/api/v1/images/..%2f.partial-0/",
        "/api/v1/jobs/%0d%0aSet-Cookie:%20a=b",
    ],
)
def test_no_path_leads_out(stack: Stack, path: str) -> None:
    answer = send(stack, head(path, f"Authorization: Bearer {stack.token()}", "Connection: close"))
    assert status_of(answer) in {301, 302, 400, 404, 422}, answer[:300]
    body = answer.partition(b"\r\n\r\n")
    assert b"root:" not in answer and b"SECRET_KEY" not in answer and b"Traceback" not in answer
    assert b"\nSet-Cookie: a=b" not in body[0]


def test_a_foreign_host_is_refused_and_never_repeated(stack: Stack) -> None:
    for path in ("/", "/login/", "/api/v1/node", "/images", "/admin", "/static/miehisto.css"):
        for line in ("Host: evil.example", "Host: localhost@evil.example", "Host: evil.example:80"):
            said = send(stack, f"GET {path} HTTP/1.1\r\n{line}\r\nConnection: close\r\n\r\n".encode())
            assert b"evil.example" not in said, (path, line)
            assert status_of(said) == (200 if path.startswith("/static/") else 400), (path, line, said[:200])
        said = send(stack, head(path, "X-Forwarded-Host: evil.example", "Connection: close"))
        assert b"evil.example" not in said
    absolute = send(
        stack, b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert b"evil.example" not in absolute
    elsewhere = send(stack, head("/login/?next=https://evil.example/", "Connection: close"))
    assert b'value="https://evil.example/"' not in elsewhere
    assert b"evil.example" not in send(stack, head("//evil.example/%2e%2e", "Connection: close"))


def test_two_requests_in_one_are_not_smuggled(stack: Stack) -> None:
    both = head("/api/v1/node", "Content-Length: 4", "Transfer-Encoding: chunked", method="POST")
    assert status_of(send(stack, both + b"0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n")) == 400
    twice = head("/api/v1/node", "Content-Length: 4", "Content-Length: 5", method="POST")
    assert status_of(send(stack, twice + b"12345")) == 400
    for wrong in (b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET /\r\n\r\n"):
        assert status_of(send(stack, wrong)) in {0, 400, 505}
    assert status_of(send(stack, head("/", "X: " + "a" * 10_000))) in {400, 431}
    assert status_of(send(stack, head("/" + "a" * 10_000))) in {400, 414}


def test_nobody_opens_a_websocket(stack: Stack) -> None:
    headers = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    said = send(stack, head("/", *headers, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
    assert status_of(said) == 403
    assert "Traceback" not in stack.said()


def test_what_is_sent_never_forges_a_line_of_the_log(stack: Stack) -> None:
    before = len(stack.said())
    forged = "%0Aready:%20forged%1b[2J%c2%9b%e2%80%a8"
    send(stack, head(f"/api/v1/services/{forged}", "Authorization: Bearer x", "Connection: close"))
    send(stack, head(f"/login/{forged}", "User-Agent: '; ready: x", "Connection: close", method="POST"))
    for header in ("Authorization: Bearer \x1b[2Jx", "User-Agent: \x1b]0;owned\x07"):
        send(stack, head("/api/v1/node", header, "Connection: close"))
    form = "username=bad%0Aready:%20forged%1b[2J&password=x"
    post = [f"Content-Length: {len(form)}", "Content-Type: application/x-www-form-urlencoded"]
    send(stack, head("/login/", *post, "Connection: close", method="POST") + form.encode())
    send(stack, b"GET / HTTP/1.1\r\nHost: localhost\r\nBad\x1b[2J Header\x00: 1\r\n\r\n")
    assert eventually(lambda: stack.said()[before:].count("POST /login/") >= 2)
    said = stack.said()[before:]
    assert "\nready: forged" not in said and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)


def test_answers_carry_their_headers_and_never_a_version(stack: Stack) -> None:
    for path in (
        "/login/",
        "/",
        "/nope",
        "/api/v1/node",
        "/api/v1/nope",
        "/static/miehisto.css",
        "/static/no",
    ):
        said = send(stack, head(path, "Connection: close")).partition(b"\r\n\r\n")[0].lower()
        assert b"content-security-policy: default-src 'self'" in said, path
        assert b"x-content-type-options: nosniff" in said, path
        assert not re.search(rb"^server: .*\d", said, re.MULTILINE), path
        assert b"unsafe-" not in said, path


_MAKE_USER = """
from django.contrib.auth.models import User
User.objects.create_user("crumbs", password="long enough 1")
"""


def cookies_of_a_login(node: Stack, scheme: str) -> list[bytes]:
    """Log in as a browser does, behind a proxy that has been asked by `scheme`; return what is set."""
    node.manage("shell", "-c", _MAKE_USER)
    asked = (f"X-Forwarded-Proto: {scheme}", f"Origin: {scheme}://localhost", "Connection: close")
    page = send(node, head("/login/", *asked))
    token = re.search(rb"csrftoken=(\w+)", page)
    assert token, page[:2000]
    form = b"username=crumbs&password=long+enough+1&csrfmiddlewaretoken=" + token[1]
    post = (f"Content-Length: {len(form)}", "Content-Type: application/x-www-form-urlencoded")
    held = f"Cookie: csrftoken={token[1].decode()}"
    answer = send(node, head("/login/", *asked, *post, held, method="POST") + form)
    assert status_of(answer) == 302, answer[:2000]
    return re.findall(rb"(?im)^set-cookie: ([^\r]+)", page + answer)


def test_no_script_and_no_other_site_gets_a_cookie(stack: Stack) -> None:
    """And nobody on the way, where HTTPS is spoken."""
    plain = cookies_of_a_login(stack, "http")
    with living(Stack, "node-behind-https", MIEHISTO_HTTPS="1") as node:
        secure = cookies_of_a_login(node, "https")
    for found in (plain, secure):
        assert {each.partition(b"=")[0] for each in found} == {b"csrftoken", b"sessionid"}, found
        for each in found:
            words = each.split(b"; ")
            assert b"HttpOnly" in words and b"SameSite=Lax" in words, each
            assert (b"Secure" in words) is (found is secure), each


def test_many_wrong_tokens_do_not_shut_the_right_one_out(stack: Stack) -> None:
    codes = set()
    for number in range(60):
        line = http.client.HTTPConnection(
            "127.0.0.1", stack.port, source_address=("127.0.0.9", 0), timeout=15
        )
        for token in (f"wrong-{number}", stack.token()):
            line.request("GET", "/api/v1/node", headers={"Authorization": f"Bearer {token}"})
            answer = line.getresponse()
            answer.read()
            codes.add((token == stack.token(), answer.status))
        line.close()
    assert codes == {(False, 401), (False, 429), (True, 200)}
    assert "wrong or ended token from 127.0.0.9" in stack.said()


def test_a_client_that_does_not_read_holds_nothing_up(stack: Stack) -> None:
    """A hundred ask for the largest page there is and never take it."""
    ask = head("/static/admin/css/base.css", "Connection: keep-alive") * 50
    lines = []
    try:
        for _ in range(100):
            line = socket.create_connection(("127.0.0.1", stack.port), timeout=15)
            lines.append(line)
            line.sendall(ask)
        connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
        connection.request("GET", "/api/v1/node", headers={"Authorization": f"Bearer {stack.token()}"})
        assert json.loads(connection.getresponse().read())["name"] == "node-of-tests"
        connection.close()
    finally:
        for line in lines:
            line.close()
