"""What an archive passes through: zstd always, age or GnuPG on demand. Knows nothing of what is in it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from worker.errors import JobFailed, describe
from worker.programs import Program

_COMPRESS = Program(("zstd", "-q", "-c", "-T0", "-3", "-"), "zstd")
# Without rights, for it parses what a stranger has made. It refuses windows above 128 MiB.
_DECOMPRESS = Program(("zstd", "-q", "-d", "-c", "--memory=128MB", "-"), "zstd", unprivileged=True)
_GPG = (
    *("gpg", "--batch", "--quiet", "--no-tty", "--disable-dirmngr", "--pinentry-mode", "error"),
    # It can write nothing. Who asks for an export has named its readers; the web of trust is not asked.
    *("--lock-never", "--no-random-seed-file", "--trust-model", "always"),
)

_LARGEST_KEY = 64 << 10
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_AGE_MAGIC = b"age-encryption.org/"
MAGIC_BYTES = len(_AGE_MAGIC)

# In Bech32 (BIP 173). A second 1 would name a plugin, a program that age would run.
_AGE_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{20,120}\Z|ssh-(ed25519|rsa) [A-Za-z0-9+/=]{40,2000}\Z")
_GPG_RECIPIENT = re.compile(r"[A-Za-z0-9<][A-Za-z0-9._%+@<> -]{2,200}\Z")


def suffix(recipients: Sequence[str], gpg_recipients: Sequence[str]) -> str:
    """Return how the name of an archive for these recipients ends."""
    return ".tar.zst" + (".age" if recipients else ".gpg" if gpg_recipients else "")


def to_write(recipients: Sequence[str], gpg_recipients: Sequence[str]) -> list[Program]:
    """Return the programs between a tar stream and an archive.

    Args:
        recipients: age's, "age1…" or a public SSH key.
        gpg_recipients: of whom root has the public key.

    Raises:
        JobFailed: somebody is named who can be none, or for both programs.
    """
    bad = [each for each in recipients if not _AGE_RECIPIENT.match(each)]
    bad += [each for each in gpg_recipients if not _GPG_RECIPIENT.match(each)]
    if bad:
        raise JobFailed(
            "bad_recipient",
            f"The text {bad[0][:80]!r} is no recipient.",
            "Give a public key that age-keygen printed (age1…), or for GnuPG a fingerprint or an address.",
        )
    if recipients and gpg_recipients:
        raise JobFailed(
            "bad_recipient", "An archive is encrypted with age or with GnuPG, not with both.", "Choose one."
        )
    if recipients:
        words = [word for each in recipients for word in ("-r", each)]
        return [_COMPRESS, Program(("age", "-e", *words), "age")]
    if gpg_recipients:
        words = [word for each in gpg_recipients for word in ("--recipient", each)]
        return [_COMPRESS, Program((*_GPG, "--encrypt", *words), "gnupg", keyring=True)]
    return [_COMPRESS]


def to_read(begins: bytes, identity: Path | None) -> list[Program]:
    """Return the programs between an archive and its tar stream.

    Args:
        begins: the archive's first `MAGIC_BYTES` bytes.
        identity: the file with age's secret key; GnuPG looks in root's own keyring.

    Raises:
        JobFailed: it is no archive, or a key is needed, or cannot be read.
    """
    if begins.startswith(_ZSTD_MAGIC):
        return [_DECOMPRESS]
    if begins.startswith(_AGE_MAGIC):
        if identity is None:
            raise JobFailed(
                "identity_needed",
                "The archive is encrypted with age.",
                "Name the file with its secret key (--identity FILE).",
            )
        # The key alone is handed on: age needs no right to find it.
        decrypt = Program(("age", "-d", "-i"), "age", unprivileged=True, secret=_key(identity))
        return [decrypt, _DECOMPRESS]
    # An OpenPGP message begins with a byte whose highest bit is set (RFC 4880, 4.2).
    if begins[:1] > b"\x7f":
        return [Program((*_GPG, "--decrypt"), "gnupg", keyring=True), _DECOMPRESS]
    raise JobFailed(
        "archive_damaged",
        "The file is no archive of an image.",
        "Give one that `mhctl image export` wrote.",
    )


def _key(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and (key := file.read(_LARGEST_KEY)):
                return key
        why = f"{path} holds none"
    except OSError as error:
        why = describe(error)
    raise JobFailed(
        "identity_needed",
        f"The secret key of age cannot be read: {why}.",
        "Name the file that age-keygen wrote (--identity FILE); a link is not followed.",
    )
