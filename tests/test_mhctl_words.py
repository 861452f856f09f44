"""mhctl's own parts, without a daemon: how it reads a command line and an address, how values look, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhctl.commandline import parse
from mhctl.errors import UsageError
from mhctl.jsontext import json_text, json_value
from mhctl.text import command_line, moment, size, table
from mhctl.transport import Address

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["services"],
        ["fly"],
        ["service", "fly"],
        ["service", "create"],
        ["service", "create", "--"],
        ["service", "create", "-x", "ruby"],
        ["service", "create", "-u"],
        ["service", "show"],
        ["service", "restore", "a", "b"],
        ["service", "show", ""],
        ["service", "show", "a", "b"],
        ["service", "list", "--all=yes"],
        ["service", "stop", "web", "--grace", "soon"],
    ],
)
def test_usage_errors(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(words)


def test_the_commands_own_words_are_left_alone() -> None:
    for words in (["--", "ruby", "--", "-e"], ["ruby", "--", "-e"]):
        assert parse(["s", "create", *words]).operands == ["ruby", "--", "-e"]
    assert parse(["service", "show", "--", "-odd"]).operands == ["-odd"]


def test_sizes_times_and_command_lines() -> None:
    assert [size(octets) for octets in (0, 1023, 1024, 22450013, 5 * 2**30)] == [
        "0B",
        "1023B",
        "1.00KiB",
        "21.41MiB",
        "5.00GiB",
    ]
    assert moment("2020-11-13T14:37:30+02:00") == "2020-11-13 12:37:30 +0000"
    assert moment(None) == "-"
    assert command_line(["sh", "-c", "echo 'a b'", "", "\x1b[2J\n"]) == (
        "sh -c 'echo '\"'\"'a b'\"'\"'' '' $'\\x1b[2J\\n'"
    )
    assert table(["A", "B"], [["long", "x"]], least={}) == "A    B\nlong x\n"


def test_addresses() -> None:
    assert Address("unix:///run/m.sock").host == "/run/m.sock"
    six = Address("http://[::1]:14444/base/")
    assert (six.host, six.port, six.prefix, six.is_local) == ("::1", 14444, "/base", True)
    for url in ("", "unix:", "ftp://x", "http://", "http://a:b", "http://user@host", "http://a b/"):
        with pytest.raises(UsageError):
            Address(url)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    )
)
def test_a_request_s_body_is_json_and_an_answer_s_is_read(body: Any) -> None:
    assert json.loads(json_text(body)) == body
    assert json_value(json.dumps(body, indent=1).encode() + b"\n") == body


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":', b"[1,2", b"{} x", b'"\x01"', b'"\xff"', b"nul", b"01"])
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json_value(body)


def test_nothing_heavy_is_imported() -> None:
    heavy = "argparse asyncio email enum http.client inspect json re socket ssl typing urllib.parse"
    found = f"print(*sys.modules.keys() & {set(heavy.split())})"
    code = f"import sys, mhctl.main, mhctl.services, mhctl.waiting; {found}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "\n"
