"""The daemon's folders with their owners and modes, its lock and the site's secret key; starts nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from miehistod import parts
from miehistod.account import Account
from miehistod.errors import CannotRun
from miehistod.settings import Settings
from worker.durable import sync_folder

MAKE_ROOM = "See that its file system is there and writable, or set MIEHISTO_STATE_DIR, _RUN_DIR or _LOG_DIR."


def make_folders(settings: Settings, account: Account) -> None:
    """Makes every folder that the parts rely on, and corrects owners and modes of those that exist.

    Raises:
        CannotRun: a folder cannot be made, or the site's user cannot enter the ones that are his.
    """
    root = (0, 0)
    his = (account.uid, account.gid)
    try:
        for path in (settings.state_dir, settings.run_dir, settings.log_dir):
            path.mkdir(parents=True, exist_ok=True)
        _make(settings.state_dir, root, 0o755)
        _make(settings.state_dir / "services", root, 0o700)
        _make(settings.state_dir / "images", root, 0o700)
        _make(settings.state_dir / "archives", root, 0o700)
        _make(settings.database_dir, his, 0o700)
        _make(settings.run_dir, root, 0o755)
        _make(settings.run_dir / "services", root, 0o700)
        _make(settings.redis_dir, his, 0o750)
        _make(settings.log_dir, (0, account.gid), 0o750)
        _give_files(settings.database_dir, account)
        point_to(settings.run_dir / "redis.sock", Path("redis/redis.sock"))
    except OSError as error:
        raise CannotRun(f"{error.filename} cannot be made: {error.strerror}.", MAKE_ROOM) from error
    for path in (settings.database_dir, settings.redis_dir):
        if not account.may("-x", path):
            raise CannotRun(
                f"User {account.name} cannot enter {path}.",
                "Open the folders above it (chmod o+x), or choose another.",
            )


def _make(path: Path, owner: tuple[int, int], mode: int) -> None:
    path.mkdir(exist_ok=True)
    if path.is_symlink() and path.lstat().st_uid != 0:
        raise OSError(0, "it is a symbolic link that root did not make", str(path))
    # Only what is wrong is written: a container's site sees the logs on a file system that is read-only.
    found = path.stat()
    if (found.st_uid, found.st_gid) != owner:
        os.chown(path, *owner)
    if stat.S_IMODE(found.st_mode) != mode or (found.st_uid, found.st_gid) != owner:
        path.chmod(mode)


def _give_files(folder: Path, account: Account) -> None:
    """Gives the database's files to the site's user, should root have made them (`manage.py migrate`).

    The folder is that user's, who could have put a link to another's file there: only plain files that have
    no other name are given, and by their descriptor.
    """
    for entry in folder.iterdir():
        try:
            fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid != account.uid:
                os.fchown(fd, account.uid, account.gid)
        finally:
            os.close(fd)


def point_to(link: Path, target: Path) -> None:
    """Makes or corrects a symbolic link, in one step for whoever follows it meanwhile."""
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


@contextlib.contextmanager
def take_locks(folder: Path, wanted: frozenset[str] = parts.ALL) -> Iterator[None]:
    """Makes sure that each part runs once for a folder: its RUN_DIR, or its STATE_DIR.

    The locks last as long as the block, whatever ends this process.

    Args:
        wanted: the parts' names. All of them together exclude every other miehistod.

    Raises:
        CannotRun: another one holds it.
    """
    with contextlib.ExitStack() as held:
        everything = wanted == parts.ALL
        held.enter_context(_locked(folder / "miehistod.lock", shared=not everything))
        for name in () if everything else sorted(wanted):
            held.enter_context(_locked(folder / f"miehistod-{name}.lock"))
        yield


def _locked(path: Path, *, shared: bool = False) -> TextIO:
    """Return the open file whose lock was taken; closing it gives the lock back."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="ascii")
    except OSError as error:
        raise CannotRun(f"{error.filename} cannot be made: {error.strerror}.", MAKE_ROOM) from error
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise CannotRun(
            f"miehistod is running already: process {holder} holds {path}.",
            "Stop that one, or give this one a MIEHISTO_RUN_DIR and a MIEHISTO_STATE_DIR of its own.",
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def write_private(path: Path, text: str, *, owner: tuple[int, int] = (0, 0)) -> None:
    """Writes a file that only its owner may read; a reader sees the old content or the new, never a part.

    It survives a power cut, as what is written afterwards may rely on.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fchown(fd, *owner)
        os.fsync(fd)
    fresh.rename(path)
    sync_folder(path.parent)


def make_secret_key(settings: Settings, account: Account) -> None:
    """Makes the site's secret key at the first start, unless the environment has one."""
    path = settings.database_dir / "secret_key"
    if not settings.secret_key and not path.exists():
        write_private(path, secrets.token_urlsafe(48) + "\n", owner=(account.uid, account.gid))
