"""The command `miehistod`: prepares one node, starts its parts, keeps them running until a signal ends it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mhctl import __version__
from miehistod import account, first_start, folders, parts, readiness, sockets
from miehistod.errors import CannotRun
from miehistod.launch import Launcher
from miehistod.saying import SAYING
from miehistod.settings import Settings, read
from miehistod.supervisor import GaveUp, PartSpec, Supervisor
from worker import orphans, policy
from worker.errors import JobFailed

ORPHANS_EVERY = 1.0

USAGE = """usage: miehistod [--only PART[,PART…]]
       miehistod --prepare
       miehistod --version

Runs everything of one node in the foreground, logs on stdout: the site, the worker, the scheduler and, unless
CELERY_BROKER_URL names another, a private Redis. SIGTERM or Ctrl-C ends it; services go on running.
--only runs some of these parts: redis, worker, scheduler, site. Where each has a unit or a container of its
own, `miehistod --prepare` comes first.
--prepare only makes the folders, the database and the first login, and ends.
Settings come from the environment; docs/reference/settings.md lists them.
"""


@dataclass(frozen=True)
class Prepared:
    """A node whose parts can be started.

    Attributes:
        password: the file with the first admin's password; it may not exist.
        redis: None when the broker is somebody else's, or a part of another miehistod.
        others: what needs a broker.
        listeners: held open here, so that a new gunicorn finds the connections that an old one left waiting.
    """

    settings: Settings
    password: Path
    redis: PartSpec | None
    others: list[PartSpec]
    listeners: list[socket.socket]


def prepare_disk(settings: Settings) -> None:
    """Makes what a node keeps: its folders, its secret key, its database, its first login.

    Raises:
        CannotRun: something is missing.
    """
    site_user = account.find(settings.user)
    folders.make_folders(settings, site_user)
    folders.make_secret_key(settings, site_user)
    launcher = Launcher(settings, site_user)
    launcher.make_places()
    # No token: another miehistod may run on this database, and its own would end.
    somebody = first_start.prepare_database(launcher)
    first_start.make_admin(launcher, is_needed=not somebody)


async def adopt_orphans(supervisor: Supervisor) -> None:
    """Reaps, for ever, what the parts launched and left behind: supervisors of services that have ended."""
    while True:
        await asyncio.sleep(ORPHANS_EVERY)
        orphans.reap(frozenset(part.pid for part in supervisor.parts.values() if part.pid))


def prepare(settings: Settings, wanted: frozenset[str] = parts.ALL) -> Prepared:
    """Makes everything that the parts need before the first of them starts.

    Args:
        wanted: names of parts. The database is brought up to date only by a miehistod that runs all of them.

    Raises:
        CannotRun: something is missing.
    """
    _check_policy()
    if wanted & {"worker", "scheduler"}:
        _check_criu()
    site_user = account.find(settings.user)
    folders.make_folders(settings, site_user)
    listeners = []
    if "site" in wanted:
        tcp = sockets.listen_tcp(settings)
        listeners.append(tcp)
        host, port = settings.bind_address
        if port == 0:  # any free one: from here on its real number
            port = tcp.getsockname()[1]
            settings = replace(settings, bind=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    folders.make_secret_key(settings, site_user)
    launcher = Launcher(settings, site_user)
    launcher.make_places()
    redis = parts.redis_part(launcher) if "redis" in wanted and not settings.broker_url else None
    if wanted - {"redis"}:
        whole = wanted == parts.ALL
        somebody = first_start.prepare_database(launcher, migrate=whole, make_token="site" in wanted)
        if whole:
            first_start.make_admin(launcher, is_needed=not somebody)
    others = []
    if "worker" in wanted:
        others.append(parts.worker_part(launcher))
    if "scheduler" in wanted:
        others.append(parts.scheduler_part(launcher))
    if "site" in wanted:
        listeners.append(sockets.listen_unix(settings, site_user))
        others.append(parts.site_part(launcher, listeners))
    return Prepared(settings, settings.state_dir / "admin_password", redis, others, listeners)


def _check_policy() -> None:
    """See that root's policy can be read: the worker would refuse every start and every restore.

    Raises:
        CannotRun: it is damaged, or somebody but root could change it.
    """
    try:
        policy.in_force()
    except JobFailed as failure:
        raise CannotRun(failure.message, failure.remedy) from None


def _check_criu() -> None:
    """See that set-up has brought CRIU: without its Python part nothing that knows the jobs can be loaded.

    Raises:
        CannotRun: it has not.
    """
    if importlib.util.find_spec("pycriu") is None:
        raise CannotRun(
            "No CRIU has been set up yet.",
            "Run `miehisto-setup` (where a Debian package brought Miehistö) or `make setup`.",
        )


async def bring_up(node: Prepared, supervisor: Supervisor) -> None:
    """Starts the parts in their order, says when the node is ready, and then watches them.

    Raises:
        GaveUp: a part died too often.
    """
    settings, say = node.settings, supervisor.say
    names = {spec.name for spec in node.others}
    if "worker" in names:
        readiness.worker_sign(settings).unlink(missing_ok=True)
    if node.redis is not None:
        supervisor.start(node.redis)
        # A worker that finds no broker tries again only after two seconds.
        while not await readiness.redis_answers(settings):
            await asyncio.sleep(readiness.PAUSE / 5)
    for spec in node.others:
        supervisor.start(spec)
    await readiness.until_ready(settings, say, site="site" in names, worker="worker" in names)
    login = f" (login admin, password in {node.password})" if node.password.exists() else ""
    if "site" in names and settings.is_open:
        say(
            f"warning: {settings.bind} can be reached from elsewhere without HTTPS, so passwords and tokens "
            "can be read on the way; put a proxy before it and set MIEHISTO_HTTPS=1."
        )
    say(f"ready: http://{settings.bind}{login}" if "site" in names else "ready")
    readiness.tell_systemd()
    await supervisor.wait()


async def run(node: Prepared) -> int:
    """Runs a node until a signal comes or a part died too often.

    Returns:
        the exit code: 0 after a signal.
    """
    orphans.adopt()
    say = SAYING[node.settings.log_format]
    supervisor = Supervisor(say)
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup wants SIGHUP ignored
            loop.add_signal_handler(number, signalled.set)
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(bring_up(node, supervisor)),
        asyncio.create_task(supervisor.wait()),  # a part may die too often before the node is ready
        asyncio.create_task(signalled.wait()),
        asyncio.create_task(adopt_orphans(supervisor)),
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    failure = next((each for each in outcomes if isinstance(each, Exception)), None)
    say("miehistod | stopping; services go on running")
    await supervisor.stop()
    if node.listeners:
        for name in ("miehistod.sock", "token"):
            (node.settings.run_dir / name).unlink(missing_ok=True)
    if isinstance(failure, GaveUp):
        say(f"miehistod | {failure}; it said:")
        for line in failure.said or ["nothing"]:
            say(f"    {line}")
        last = failure.said[-1] if failure.said else "nothing"
        say(f"miehistod: stopped everything: {failure}, its last words: {last}")
        return 1
    if failure is not None:
        raise failure
    say("miehistod | stopped")
    return 0


def main() -> int:
    """The entry point. Returns the exit code."""
    words = sys.argv[1:]
    only_prepare = words == ["--prepare"]
    wanted = parts.ALL
    if words[:1] == ["--only"] and len(words) == 2:
        wanted = frozenset(words[1].split(","))
    elif words and not only_prepare:
        wanted = frozenset()
    if words == ["--version"]:
        sys.stdout.write(f"miehistod {__version__}\n")
        return 0
    if not wanted or wanted - parts.ALL:
        wants_help = words in (["-h"], ["--help"])
        (sys.stdout if wants_help else sys.stderr).write(USAGE)
        return 0 if wants_help else 2
    try:
        if os.geteuid() != 0:
            raise CannotRun(
                "miehistod must run as root: CRIU dumps and restores nothing otherwise.",
                "Start it with `sudo miehistod`.",
            )
        settings = read()
        if only_prepare:
            prepare_disk(settings)
            return 0
        with ExitStack() as locks:
            # The state's too: with a RUN_DIR of its own a second one would believe that no service runs.
            for folder in dict.fromkeys((settings.run_dir, settings.state_dir)):
                locks.enter_context(folders.take_locks(folder, wanted))
            return asyncio.run(run(prepare(settings, wanted)))
    except CannotRun as reason:
        sys.stderr.write(f"miehistod: {reason}\n")
        return 1
    except KeyboardInterrupt:  # before the parts were started
        return 130


if __name__ == "__main__":
    sys.exit(main())
