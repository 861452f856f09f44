"""Turns a part's command into one that runs as the right user, sees the checkout and ends with miehistod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from miehistod.account import Account
from miehistod.errors import CannotRun
from miehistod.settings import Settings

CHECKOUT = Path(__file__).resolve().parent.parent
ENTER = Path(__file__).resolve().with_name("enter.py")
# What root's session knows and a part must not inherit.
PRIVATE_NAMES = (
    "HOME",
    "USER",
    "LOGNAME",
    "MAIL",
    "XDG_RUNTIME_DIR",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "DATABASE_PASSWORD_FILE",
)


@dataclass(frozen=True)
class View:
    """A folder shown to the unprivileged user at another place, in a mount namespace of his process."""

    tree: Path
    at: Path


class Launcher:
    """Knows how to start a process of root's and one of the site's user.

    Args:
        checkout: the folder with Miehistö's packages. prefix: the virtual environment.
    """

    def __init__(
        self,
        settings: Settings,
        account: Account,
        *,
        checkout: Path = CHECKOUT,
        prefix: Path = Path(sys.prefix),
        python: Path = Path(sys.executable),
    ) -> None:
        self.settings = settings
        self.account = account
        self.checkout = checkout
        self.prefix = prefix
        self.python = python
        self.views = self._needed_views()

    def _needed_views(self) -> list[View]:
        views = []
        if not self.account.may("-r", self.checkout / "miehisto_web" / "__init__.py"):
            views.append(View(self.checkout, self.settings.run_dir / "app"))
        inside = self.prefix.is_relative_to(self.checkout)
        if not (views and inside) and not self.account.may("-x", self.python):
            if inside:  # the checkout is open, the environment in it is not
                views.append(View(self.checkout, self.settings.run_dir / "app"))
            else:
                views.append(View(self.prefix, self.settings.run_dir / "venv"))
        return views

    def seen(self, path: Path) -> Path:
        """Where the site's user sees a path."""
        for view in self.views:
            if path.is_relative_to(view.tree):
                return view.at / path.relative_to(view.tree)
        return path

    def make_places(self) -> None:
        """Makes the folders that views are mounted on and tries whether the site's user can run Python there.

        Raises:
            CannotRun: he cannot.
        """
        for view in self.views:
            view.at.mkdir(mode=0o755, exist_ok=True)
            view.at.chmod(0o755)
        found = self.run_python_as_user("-c", "import django, miehisto_web")
        if found.returncode != 0:
            last = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotRun(
                f"User {self.account.name} cannot run the site from {self.checkout}: {last}.",
                f"Run `chmod -R go+rX {self.checkout}`, and see that {sys.base_prefix} is open to him too.",
            )

    def wrap(self, argv: list[str], *, as_user: bool, listen: tuple[int, ...] = ()) -> list[str]:
        """The command line that starts `argv` by way of enter.py.

        Args:
            as_user: as the site's user, else as root.
            listen: listening sockets, inherited under these numbers.
        """
        account = self.account
        wish = {
            "parent": os.getpid(),
            "user": [account.uid, account.gid, list(account.groups)] if as_user else None,
            "views": [[str(view.tree), str(view.at)] for view in self.views] if as_user else [],
            "listen": list(listen),
            "folder": str(self.seen(self.checkout) if as_user else self.checkout),
            "argv": argv,
        }
        return [sys.executable, "-I", "-S", str(ENTER), json.dumps(wish)]

    def python_for(self, *, as_user: bool) -> str:
        """The interpreter's path as the part sees it."""
        return str(self.seen(self.python) if as_user else self.python)

    def environment(self, *, as_user: bool) -> dict[str, str]:
        """A part's environment: ours, the settings in full, and nothing of root's session."""
        settings = self.settings
        env = {name: text for name, text in os.environ.items() if name not in PRIVATE_NAMES}
        env |= self._database_password()
        env |= {
            "DJANGO_SETTINGS_MODULE": "miehisto_web.settings",
            "PYTHONUNBUFFERED": "1",
            "HOME": str(settings.database_dir) if as_user else "/root",
            "MIEHISTO_STATE_DIR": str(settings.state_dir),
            "MIEHISTO_RUN_DIR": str(settings.run_dir),
            "MIEHISTO_LOG_DIR": str(settings.log_dir),
            "MIEHISTO_BIND": settings.bind,
            "MIEHISTO_NODE": settings.node,
            "MIEHISTO_USER": settings.user,
            "CELERY_BROKER_URL": settings.broker_url or settings.own_broker_url,
        }
        return env

    def _database_password(self) -> dict[str, str]:
        """The password in DATABASE_PASSWORD_FILE, which the site's user may not read, as libpq takes it."""
        name = os.environ.get("DATABASE_PASSWORD_FILE", "")
        try:
            return {"PGPASSWORD": Path(name).read_text(encoding="utf-8").strip()} if name else {}
        except OSError as error:
            raise CannotRun(
                f"The file of DATABASE_PASSWORD_FILE cannot be read: {error.strerror}.",
                f"See that {name} is there.",
            ) from error

    def run_python_as_user(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs Python as the site's user to its end and returns what it said.

        Args:
            words: Python's arguments. more: additions to the environment.
        """
        return subprocess.run(
            self.wrap([self.python_for(as_user=True), *words], as_user=True),
            env=self.environment(as_user=True) | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
