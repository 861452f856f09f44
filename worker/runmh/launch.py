"""The first process of a new service, from fork to exec. Knows nothing of restoring, logging or waiting."""

from __future__ import annotations

import grp
import json
import os
import pwd
from typing import Any, NoReturn

from worker import namespaces
from worker.runmh.privileges import NoSuchCapability, Privileges
from worker.runmh.surroundings import settle

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """The service cannot be started, for a reason that its operator can mend."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.report = {"code": code, "message": message, "remedy": remedy}


def is_number(text: str) -> bool:
    """Tell whether `text` is the number of a user or a group; the highest means "unchanged" (chown(2))."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32 - 1


class Account:
    """The user that a service runs as.

    Args:
        user: a name or a number; empty for root.
        group: a name or a number; empty for the user's own group.

    Raises:
        Refused: there is no such user or group on this node.
    """

    def __init__(self, user: str, group: str) -> None:
        self.uid, self.gid, self.name, self.home = 0, 0, "root", "/root"
        self.shell = "/bin/sh"
        try:
            row = pwd.getpwuid(int(user or 0)) if is_number(user or "0") else pwd.getpwnam(user)
            self.uid, self.gid, self.name, self.home = row.pw_uid, row.pw_gid, row.pw_name, row.pw_dir
            self.shell = row.pw_shell
        except KeyError:
            if not is_number(user):
                raise Refused(
                    "no_such_user",
                    f"There is no user {user!r} on this node.",
                    "Create the user, or name another.",
                ) from None
            self.uid = self.gid = int(user)
            self.name, self.home = user, "/"
        self.groups = os.getgrouplist(self.name, self.gid)
        if group:
            try:
                self.gid = int(group) if is_number(group) else grp.getgrnam(group).gr_gid
            except KeyError:
                raise Refused(
                    "no_such_group",
                    f"There is no group {group!r} on this node.",
                    "Create the group, or name another.",
                ) from None
            self.groups = [self.gid, *self.groups]

    def become(self) -> None:
        """Give up being root for good."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def environment(account: Account, asked: dict[str, str]) -> dict[str, str]:
    """Return a service's whole environment: nothing of the worker's leaks into it."""
    return {
        "PATH": DEFAULT_PATH,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
        "LANG": "C.UTF-8",
        **asked,
    }


def check_command(word: str, path: str) -> None:
    """Find the command as execvp(3) will.

    Raises:
        Refused: it does not exist, or may not be executed by the present user.
    """
    candidates = [word] if "/" in word else [f"{folder or '.'}/{word}" for folder in path.split(":")]
    present = [name for name in candidates if os.path.exists(name)]
    if not present:
        raise Refused(
            "command_not_found",
            f"The command {word!r} does not exist on this node.",
            "Check its spelling, give the whole path, or install it on the node.",
        )
    if not any(os.path.isfile(name) and os.access(name, os.X_OK) for name in present):
        raise Refused(
            "command_not_executable",
            f"The command {present[0]!r} may not be executed by this user.",
            "Make it executable (chmod +x), or run the service as a user who may execute it.",
        )


def binds_of(spec: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Return (source, target, read-only) of each `SRC:DST[:ro]` of a spec."""
    found = []
    for text in spec.get("binds", []):
        source, target, *mode = text.split(":")
        found.append((source, target, mode == ["ro"]))
    return found


def become_service(
    spec: dict[str, Any],
    mounts: list[str],
    root: str,
    tini: str,
    log: int,
    complaint: int,
    go: int,
) -> NoReturn:
    """Turn the calling process, PID 1 of a new PID namespace, into the service under tini.

    Args:
        spec: argv, user, group, cwd, env, binds, privileges, limits.
        mounts: mount points of the host that the service sees.
        root: an empty folder for its root.
        tini: path of the init program.
        log: write end of the supervisor's pipe.
        complaint: a close-on-exec pipe; what fails before exec is written to it as JSON.
        go: a pipe that holds a byte once it is on record what runs here, and this is in its control groups.
    """
    try:
        settle((spec.get("limits") or {}).get("open_files", 0))
        namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC)
        account = Account(spec.get("user", ""), spec.get("group", ""))
        asked = spec.get("privileges") or {}
        privileges = _privileges(asked, account.uid)
        namespaces.lay_root(root, mounts, binds_of(spec), asked.get("private_tmp", 0))
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        variables = environment(account, spec.get("env", {}))
        privileges.bound()
        account.become()
        privileges.settle()
        _enter_folder(spec.get("cwd") or "/")
        check_command(spec["argv"][0], variables["PATH"])
        if not os.read(go, 1):  # the supervisor was killed or refuses: nobody would know of the service
            os._exit(127)
        os.execve(tini, ["tini", "--", *spec["argv"]], variables)
    except Refused as refusal:
        report = refusal.report
    except OSError as error:
        # A path of the service is named as the service would see it.
        reason = (error.strerror or str(error)).replace(root, "")
        report = {
            "code": "start_failed",
            "message": f"The service's surroundings could not be built: {reason}.",
            "remedy": "Look at the path that is named; a bind needs its source and its target to exist.",
        }
    except BaseException as error:
        report = {
            "code": "start_failed",
            "message": f"The service could not be started: {type(error).__name__}: {error}.",
            "remedy": "Report it: this is a fault of Miehistö.",
        }
    os.write(complaint, json.dumps(report).encode())
    os._exit(127)


def _privileges(asked: dict[str, Any], uid: int) -> Privileges:
    try:
        return Privileges(asked, uid)
    except NoSuchCapability as error:
        raise Refused(
            "no_such_capability",
            f"This node cannot give the service CAP_{error}.",
            "See capabilities(7) for the names, and which ones miehistod itself has (capsh --print).",
        ) from None


def _enter_folder(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise Refused(
            "bad_directory",
            f"The working directory {folder!r} cannot be entered: {error.strerror}.",
            "Create it, or let the service's user enter it.",
        ) from None
