"""What stands between an empty folder and a site to log in to: tables, the first admin, root's token."""

from __future__ import annotations

import secrets
from pathlib import Path

from miehistod.errors import CannotRun
from miehistod.folders import write_private
from miehistod.launch import Launcher

ADMIN = "admin"
WRONG_SETTING = 3
TOO_NEW = 4
UPGRADE = "Start that version here too, or go back with its backup (docs/how-to/upgrade.md)."
FROM_DJANGO = "Mend the setting (docs/reference/settings.md), or the database that DATABASE_URL names."


# One process for both: most of their time goes into loading Django. What an operator can mend is a sentence.
PREPARE = """
import sys
import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from environs import EnvError
from services.broker import refuse_open
try:
    django.setup()
    refuse_open(settings.CELERY_BROKER_URL)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            encoding = cursor.execute("SHOW server_encoding").fetchone()[0]
        if encoding != "UTF8":
            again = "make it anew with `createdb --encoding UTF8 --template template0`"
            sys.exit(f"Its encoding is {encoding}: {again}.")
    loader = MigrationExecutor(connection).loader
    newer = sorted(loader.applied_migrations.keys() - loader.disk_migrations.keys())
    newer = [name for name in newer if name[0] in loader.migrated_apps]
    if newer:
        sys.stderr.write("It belongs to a newer Miehist\u00f6, with " + ", ".join(map(".".join, newer)) + ".")
        sys.exit(4)
    if "migrate" in sys.argv:
        call_command("migrate", interactive=False, verbosity=0)
    else:
        missing = sorted(loader.graph.nodes.keys() - loader.applied_migrations.keys())
        if missing:
            sys.exit("It lacks " + ", ".join(map(".".join, missing)) + ": run `miehistod --prepare`.")
    if "token" in sys.argv:
        call_command("daemon_token")
except (EnvError, ImproperlyConfigured) as error:
    sys.stderr.write(str(error))
    sys.exit(3)
except DatabaseError as error:
    sys.exit(str(error))
"""


def prepare_database(launcher: Launcher, *, migrate: bool = True, make_token: bool = False) -> None:
    """Brings the database up to date, as the site's user, so that its files are his.

    Args:
        migrate: False only looks whether it is the one that this version works with.
        make_token: also write a fresh token for root's mhctl to RUN_DIR/token; the node's earlier one ends.

    Raises:
        CannotRun: the database cannot be brought up to date, or the site gives no token.
    """
    words = [word for word, asked in (("migrate", migrate), ("token", make_token)) if asked]
    done = launcher.run_python_as_user("-c", PREPARE, *words)
    token = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == WRONG_SETTING:
        message, _, remedy = done.stderr.strip().partition("\n  remedy: ")
        raise CannotRun(message if message.endswith(".") else f"{message}.", remedy or FROM_DJANGO)
    if done.returncode != 0 or (make_token and not token):
        raise CannotRun(
            f"The database cannot be prepared:\n{_last_lines(done.stderr or done.stdout)}",
            UPGRADE if done.returncode == TOO_NEW else FROM_DJANGO,
        )
    if make_token:
        write_private(launcher.settings.run_dir / "token", token + "\n")


def make_admin(launcher: Launcher) -> Path:
    """Makes the first user of the site at the first start, with a random password.

    Returns:
        the file that holds the password, readable by root only.

    Raises:
        CannotRun: the user cannot be made.
    """
    path = launcher.settings.state_dir / "admin_password"
    if path.exists():
        return path
    # The password is on the disk before the user is in the database: a crash between the two loses nothing.
    pending = path.with_name("admin_password.pending")
    tried_before = pending.exists()
    if not tried_before:
        write_private(pending, secrets.token_urlsafe(15) + "\n")
    done = launcher.run_python_as_user(
        *("-m", "django", "createsuperuser", "--noinput"),
        *("--username", ADMIN, "--email", f"{ADMIN}@localhost"),
        DJANGO_SUPERUSER_PASSWORD=pending.read_text(encoding="ascii").strip(),
    )
    if done.returncode == 0 or (tried_before and "already taken" in done.stderr):
        pending.rename(path)
    else:
        pending.unlink()
        if "already taken" not in done.stderr:  # else somebody made him, and knows his password
            raise CannotRun(f"The site's first user cannot be made:\n{_last_lines(done.stderr)}", FROM_DJANGO)
    return path


def _last_lines(text: str, count: int = 12) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-count:])
