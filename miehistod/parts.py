"""The parts of one node and their command lines; knows nothing of how they are kept running."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from miehistod.errors import CannotRun
from miehistod.launch import Launcher
from miehistod.supervisor import PartSpec

ALL = frozenset(("redis", "worker", "scheduler", "site"))
CELERY = ("-m", "celery", "--quiet", "-A", "miehisto_web.celery")
# CRIU wants root and the queue carries nothing but ids as JSON, so Celery's warning would only alarm people.
QUIET_ROOT = ("-W", "ignore:You're running the worker with superuser privileges")
SITE_PROCESSES = 2
# Jobs of one node that run at once. They mostly wait (for the disk, for CRIU), so more than there are cores.
WORKER_PROCESSES = max(4, min(8, 2 * (os.cpu_count() or 1)))
# What Redis is told of ours: not where the database is, nor its password.
REDIS_SEES = ("PATH", "LANG", "LC_ALL", "TZ")
# A held answer (?wait=) must not outlast the time that miehistod gives its parts to end.
SITE_GRACE = 3


def redis_part(launcher: Launcher) -> PartSpec:
    """The private Redis: a unix socket, no TCP port, nothing kept on the disk (the database is the truth).

    Raises:
        CannotRun: redis-server is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise CannotRun(
            "redis-server is not installed.", "Run `make setup`, or name another Redis in CELERY_BROKER_URL."
        )
    folder = launcher.settings.redis_dir
    argv = [program, "--port", "0", "--unixsocket", str(folder / "redis.sock"), "--unixsocketperm", "660"]
    argv += ["--save", "", "--appendonly", "no", "--dir", str(folder), "--daemonize", "no", "--pidfile", ""]
    argv += ["--loglevel", "warning"]
    return PartSpec(
        name="redis",
        argv=launcher.wrap(argv, as_user=True),
        env={name: os.environ[name] for name in REDIS_SEES if name in os.environ},
        stop_last=True,
    )


def worker_part(launcher: Launcher) -> PartSpec:
    """The Celery worker, as root: CRIU needs it."""
    node = launcher.settings.node
    argv = [launcher.python_for(as_user=False), *QUIET_ROOT, *CELERY, "worker"]
    argv += [
        "-Q",
        f"node.{node}",
        "-n",
        f"{node}@%h",
        "--concurrency",
        str(WORKER_PROCESSES),
        "-P",
        "prefork",
    ]
    # Workers need not know of each other here, and asking around costs a second at each start.
    argv += ["--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    env = launcher.environment(as_user=False)
    return PartSpec(name="worker", argv=launcher.wrap(argv, as_user=False), env=env)


def scheduler_part(launcher: Launcher) -> PartSpec:
    """Celery's beat, which asks for the dumps that schedules in the database want."""
    argv = [launcher.python_for(as_user=True), *CELERY, "beat"]
    argv += ["-S", "images.scheduler.Scheduler", "--loglevel", "INFO"]
    env = launcher.environment(as_user=True)
    return PartSpec(name="scheduler", argv=launcher.wrap(argv, as_user=True), env=env)


def site_part(launcher: Launcher, listeners: list[socket.socket]) -> PartSpec:
    """Django under gunicorn.

    The sockets go in as systemd would pass them, not by `--bind fd://N`: with that, gunicorn removes the unix
    socket's path when it ends (gunicorn 27, Arbiter.stop), and the next gunicorn listens there too.
    """
    fds = tuple(listener.fileno() for listener in listeners)
    argv = [launcher.python_for(as_user=True), "-m", "gunicorn", "-k", "miehisto_web.server.Worker"]
    # Nobody's headers are believed here: who asks, and by HTTPS or not, the site decides by its settings.
    argv += ["-w", str(SITE_PROCESSES), "--forwarded-allow-ips", ""]
    argv += ["--graceful-timeout", str(SITE_GRACE), "--no-control-socket", "--access-logfile", "-"]
    # The address as it was sent, for a decoded one may hold a newline and so a line of the sender's making.
    argv += ["--access-logformat", "%(s)s %(m)s %({raw_uri}e)s %(M)sms"]
    if Path("/dev/shm").is_dir():  # noqa: S108 (gunicorn's heartbeat file: on a disk it can stall)
        argv += ["--worker-tmp-dir", "/dev/shm"]  # noqa: S108
    argv.append("miehisto_web.asgi:application")
    return PartSpec(
        name="site",
        argv=launcher.wrap(argv, as_user=True, listen=fds),
        env=launcher.environment(as_user=True),
        pass_fds=fds,
    )
