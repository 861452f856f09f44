"""Runs GnuPG where it finds its own programs and root's keyring, and nothing else of the host.

gpg parses what a stranger has made, and root's keyring and agent serve root alone: so it stays root, but has
no capability, no network, sees no other process, and can write nothing. Knows nothing of archives. Run as a
program, in the namespaces of `alone.APART`: `python3 -m worker.keyring gpg ARGUMENT…`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from worker import alone, namespaces
from worker.errors import describe

SHOWN = (
    # Its programs, and what they are linked with.
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"),
    # What root has set for GnuPG on the whole host, and what the C library asks for a user's name.
    *("/etc/gnupg", "/etc/gcrypt", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
)
_SOCKETS = "/run/user/0"
"""Where GnuPG's programs meet, if there is such a folder; else they do in the keyring's own (gpgconf(1))."""


def main(words: Sequence[str]) -> None:
    """Become that program. It finds root's agent if that runs, else it starts one that ends with it."""
    # Links on the way are what they are, so that GnuPG finds its agent by the same name as outside.
    home = Path("/", os.environ.get("GNUPGHOME") or Path("~/.gnupg").expanduser())
    shown, private = [*SHOWN], []
    if home.is_dir():
        if home.stat().st_uid != 0:
            sys.exit(
                f"keyring: {home} is not root's, and another's keyring cannot be read without capabilities"
            )
        shown += dict.fromkeys((str(home), str(home.resolve())))
    else:
        private.append(str(home))  # without a keyring there is no key either, which gpg says best
    meeting = _agents_folder()
    if meeting is None:
        private.append(_SOCKETS)
    elif meeting.resolve() != home.resolve():
        shown.append(str(meeting))
    try:
        namespaces.lay_bare_root("/proc", list(filter(os.path.lexists, shown)), private)
    except OSError as error:
        sys.exit(f"keyring: {describe(error)}")
    limited = (*alone.WITHOUT_CAPABILITIES, *words)
    os.execvp(limited[0], limited)  # noqa: S606 - no shell is wanted


def _agents_folder() -> Path | None:
    """Return the folder with the socket of root's agent, None if no agent listens there."""
    asked = ("gpgconf", "--list-dirs", "agent-socket")
    path = unquote(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
    with socket.socket(socket.AF_UNIX) as agent:
        try:
            agent.connect(path)
        except OSError:
            return None
    return Path(path).parent


if __name__ == "__main__":
    main(sys.argv[1:])
