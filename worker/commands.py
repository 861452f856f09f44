"""Whether a command could be started on this node as a given user. Starts nothing of it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from worker.runmh.launch import DEFAULT_PATH, Account, Refused

_PATIENCE = 10.0


def check(*, command: str, user: str = "", group: str = "", cwd: str = "/", path: str = "") -> dict[str, Any]:
    """Look for a command as the service's own first process will.

    Args:
        command: the first word of the command line.
        user, group: names or numbers; empty for root and the user's own group.
        cwd: the folder that the service would be started in.
        path: its PATH; empty for the default.

    Returns:
        able, and the found path; or code, message and remedy.
    """
    try:
        account = Account(user, group)
        found = _found(account, command, cwd, path or DEFAULT_PATH)
    except Refused as refusal:
        return {"able": False, **refusal.report}
    return {"able": True, "path": found}


def _found(account: Account, command: str, cwd: str, path: str) -> str:
    if _as_user(account, cwd, ["true"]):
        raise Refused(
            "bad_directory",
            f"The working directory {cwd!r} does not exist, or user {account.name} may not enter it.",
            "Create it, or let the service's user enter it.",
        )
    words = [command] if "/" in command else [f"{folder or '.'}/{command}" for folder in path.split(":")]
    whole = dict.fromkeys(os.path.normpath(os.path.join(cwd, word)) for word in words)
    # Root sees more than may be told to who asks.
    present = [
        path for path in whole if os.path.exists(path) and not _as_user(account, cwd, ["test", "-e", path])
    ]
    if not present:
        raise Refused(
            "command_not_found",
            f"The command {command!r} does not exist on this node.",
            "Check its spelling, give the whole path, or install it on the node.",
        )
    for file in present:
        if os.path.isfile(file) and not _as_user(account, cwd, ["test", "-x", file]):
            return file
    raise Refused(
        "command_not_executable",
        f"The command {present[0]!r} may not be executed by user {account.name}.",
        "Make it executable (chmod +x), or run the service as a user who may execute it.",
    )


def _as_user(account: Account, cwd: str, words: list[str]) -> int:
    """Run a program as this user in this folder, and return its exit status; not 0 if it cannot enter it."""
    try:
        return subprocess.run(
            ["env", f"--chdir={cwd}", *words],
            # None of ours: this user could read the site's secrets in it.
            env={"PATH": DEFAULT_PATH},
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        raise Refused(
            "bad_directory",
            f"The working directory {cwd!r}, or the folder of the command, does not answer.",
            "See whether its file system can be reached, then ask again.",
        ) from None
