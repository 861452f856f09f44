"""GnuPG in its room: what of the host it can reach, and which of root's keys it finds."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.isolation import FOLDER
from worker import encryption, programs
from worker.programs import Program

TAKEN_OVER = """
import os, socket
def tried(what):
    try:
        what()
        return "it is let"
    except OSError as error:
        return type(error).__name__ if error.errno != 30 else "read-only"
print(os.getresuid())
kept = ("CapPrm", "CapBnd", "NoNewPrivs")
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(kept)])
print(sorted({each for each in os.listdir("/proc") if each.isdigit()} - {"1", str(os.getpid())}))
print(tried(lambda: socket.socket().connect(("127.0.0.1", PORT))))
print([tried(lambda: open(path)) for path in ("/etc/shadow", "/var/lib", "/root/.bashrc", "STATE")])
print([tried(lambda: open(path, "w")) for path in WRITTEN])
print(sorted(os.listdir("/")))
"""
WRITTEN = ("/x", "/usr/bin/x", "/etc/gnupg.conf", "/proc/sys/kernel/core_pattern")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty keyring, which root's is for the test."""
    home = FOLDER / "keyring"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    yield home
    subprocess.run(["gpgconf", "--kill", "all"], check=True)
    subprocess.run(["rm", "-r", home], check=True)


def key(passphrase: str) -> None:
    """Make a key for keeper@example.org; no agent is left that knows it."""
    options = ["--batch", "--quiet", "--passphrase", passphrase, "--quick-generate-key"]
    subprocess.run(["gpg", *options, "keeper@example.org", "future-default"], capture_output=True, check=True)
    subprocess.run(["gpgconf", "--kill", "all"], check=True)


def through(row: list[Program], content: bytes) -> tuple[bytes, list[str]]:
    """Return what the first program of a row makes of some bytes, and what it says if it fails."""
    source = FOLDER / "source"
    source.write_bytes(content)
    with source.open("rb") as file, programs.out_of(file.fileno(), row) as running:
        return running.end.read(), running.finish()


def encrypted(content: bytes) -> bytes:
    made, failures = through(encryption.to_write([], ["keeper@example.org"])[1:], content)
    assert not failures
    return made


def decrypted(content: bytes) -> tuple[bytes, list[str]]:
    return through(encryption.to_read(content, None)[:1], content)


def test_whoever_takes_over_gpg_reaches_nothing_but_the_keyring(home: Path) -> None:
    """It is root, so all that counts is what it can see; and it leaves nothing for who runs gpg next."""
    outside = FOLDER / "outside"
    outside.touch(mode=0o600)
    with socket.create_server(("127.0.0.1", 0)) as port:
        attack = TAKEN_OVER.replace("PORT", str(port.getsockname()[1])).replace("STATE", str(outside))
        attack = attack.replace("WRITTEN", repr([*WRITTEN, f"{home}/gpg-agent.conf"]))
        said, failures = through([Program(["/usr/bin/python3", "-c", attack], "python3", keyring=True)], b"")
    assert not failures
    uids, rights, others, network, read, written, root = said.decode().splitlines()
    assert uids == "(0, 0, 0)"
    assert rights == str(["0" * 16, "0" * 16, "1"])
    assert (others, network) == ("[]", "OSError")
    assert read == str(["FileNotFoundError"] * 4)
    assert written == str(["read-only"] * 5)
    assert not {"root", "var", "home", "sys", "boot", "srv", "opt"} & set(ast.literal_eval(root))


def test_a_key_without_a_passphrase_needs_no_agent_and_leaves_none(home: Path) -> None:
    key("")
    before = sorted(os.listdir(home))
    assert decrypted(encrypted(b"memory")) == (b"memory", [])
    assert sorted(os.listdir(home)) == before


def test_a_key_with_a_passphrase_wants_root_s_agent_to_know_it(home: Path) -> None:
    key("secret")
    archive = encrypted(b"memory")
    made, failures = decrypted(archive)
    assert made == b"" and any("No secret key" in line for line in failures)
    unlock = [
        "gpg",
        "--batch",
        "--quiet",
        "--pinentry-mode",
        "loopback",
        "--passphrase",
        "secret",
        "--decrypt",
    ]
    subprocess.run(unlock, input=archive, capture_output=True, check=True)  # it stays with the agent
    assert decrypted(archive) == (b"memory", [])


def test_who_has_no_keyring_is_told_that_there_is_no_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key("")
    archive = encrypted(b"memory")
    monkeypatch.setenv("GNUPGHOME", str(FOLDER / "no-such-keyring"))
    made, failures = decrypted(archive)
    assert made == b"" and any("No secret key" in line for line in failures)
    assert not (FOLDER / "no-such-keyring").exists()
