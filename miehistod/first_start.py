"""What stands between an empty folder and a site to log in to: tables, the first admin, root's token."""

from __future__ import annotations

import secrets

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
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
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
            units = "where units run it `miehisto-manage --run miehistod --prepare`"
            sys.exit(f"It lacks {', '.join(map('.'.join, missing))}: run `miehistod --prepare`, {units}.")
    # Root's own user, whom a token lets in, has no password.
    if not get_user_model().objects.exclude(password__startswith=UNUSABLE_PASSWORD_PREFIX).exists():
        print("nobody")
    if "token" in sys.argv:
        call_command("daemon_token")
except (EnvError, ImproperlyConfigured) as error:
    sys.stderr.write(str(error))
    sys.exit(3)
except DatabaseError as error:
    sys.exit(str(error))
"""


def prepare_database(launcher: Launcher, *, migrate: bool = True, make_token: bool = False) -> bool:
    """Brings the database up to date, as the site's user, so that its files are his.

    Args:
        migrate: False only looks whether it is the one that this version works with.
        make_token: also write a fresh token for root's mhctl to RUN_DIR/token; the node's earlier one ends.

    Returns:
        whether somebody has a password to log in with.

    Raises:
        CannotRun: the database cannot be brought up to date, or the site gives no token.
    """
    words = [word for word, asked in (("migrate", migrate), ("token", make_token)) if asked]
    done = launcher.run_python_as_user("-c", PREPARE, *words)
    said = done.stdout.split()
    token = said[-1] if make_token and said else ""
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
    return "nobody" not in said


def make_admin(launcher: Launcher, *, is_needed: bool) -> None:
    """Makes the first user of the site; his password is in STATE_DIR/admin_password, for root only.

    Args:
        is_needed: nobody has a password yet. Where the node had another database before, whose first user's
            is on the disk, this one gets the same.

    Raises:
        CannotRun: the user cannot be made.
    """
    path = launcher.settings.state_dir / "admin_password"
    pending = path.with_name("admin_password.pending")
    tried_before = pending.exists()
    if not is_needed:
        if tried_before and not path.exists():  # a crash came just after he had been made
            pending.rename(path)
        pending.unlink(missing_ok=True)
        return
    # The password is on the disk before the user is in the database: a crash between the two loses nothing.
    if not tried_before:
        known = path.read_text(encoding="ascii") if path.exists() else secrets.token_urlsafe(15) + "\n"
        write_private(pending, known)
    done = launcher.run_python_as_user(
        *("-m", "django", "createsuperuser", "--noinput"),
        *("--username", ADMIN, "--email", f"{ADMIN}@localhost"),
        DJANGO_SUPERUSER_PASSWORD=pending.read_text(encoding="ascii").strip(),
    )
    if done.returncode == 0:
        pending.rename(path)
    else:
        pending.unlink()
        if "already taken" not in done.stderr:  # else somebody made him, and knows his password
            raise CannotRun(f"The site's first user cannot be made:\n{_last_lines(done.stderr)}", FROM_DJANGO)


def _last_lines(text: str, count: int = 12) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-count:])
