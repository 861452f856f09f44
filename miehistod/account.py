"""The unprivileged user whom the site, the scheduler and Redis run as; knows nothing of what they are."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from miehistod.errors import CannotRun


@dataclass(frozen=True)
class Account:
    """A user with the groups that a login would give him."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    def may(self, test: str, path: Path) -> bool:
        """Asks the kernel, as this user, about a path.

        Args:
            test: an option of test(1): -r, -w or -x.
        """
        done = subprocess.run(
            ["/usr/bin/test", test, str(path)],
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            stdin=subprocess.DEVNULL,
            cwd="/",
            check=False,
        )
        return done.returncode == 0


def find(name: str) -> Account:
    """Looks a user up.

    Raises:
        CannotRun: there is none, or it is root.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise CannotRun(
            f"There is no user {name!r} for the site to run as.",
            "Run `make setup`, or make it with `useradd --system --no-create-home`.",
        ) from None
    if entry.pw_uid == 0:
        raise CannotRun("The site must not run as root.", "Name another user in MIEHISTO_USER.")
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(name, entry.pw_uid, entry.pw_gid, groups)
