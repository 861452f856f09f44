"""How a program is run that reads what a stranger has made: who takes it over gains next to nothing.

Knows neither the programs nor what they read.
"""

from __future__ import annotations

from collections.abc import Iterable

from worker.runmh.launch import DEFAULT_PATH

UID = 65533
"""A user, and a group, that nobody else is: Debian and systemd leave this number unused (systemd's
UIDS-GIDS.md). What `nobody` runs, services perhaps, could be signalled and traced by another of nobody's."""

ENVIRONMENT = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}
"""Nothing of the worker's, which has the database's password and the broker's in it."""

APART = (
    *("unshare", "--net", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child"),
    # The first process of a PID namespace, which is root's and takes all others with it when it is ended.
    *("timeout", "--foreground", "0"),
)
"""Before a program's words: it runs without a network, and sees no process but its own. It is still root."""

_WITHOUT = ("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--")

WITHOUT_CAPABILITIES = ("setpriv", *_WITHOUT)
"""Before a program's words: it is the same user without any capability, and stays so."""

WITHOUT_RIGHTS = (
    *APART,
    *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
    *_WITHOUT,
)
"""As well, as that user and without any capability. It can read what every user of the host may read."""


_SAY = ("unshare: ", "timeout: ", "setpriv: ", "keyring: ")  # the last is keyring.py


def refusal(lines: Iterable[str]) -> str:
    """Return the words by which the host refuses to run a program so, of all that was said.

    Returns:
        "" if it was run, whatever became of it.
    """
    return next((line for line in lines if line.startswith(_SAY)), "")
