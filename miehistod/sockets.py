"""The listening sockets: made by root, kept by miehistod, handed to each gunicorn that it starts."""

from __future__ import annotations

import errno
import os
import socket
import time

from miehistod.account import Account
from miehistod.errors import CannotRun
from miehistod.settings import Settings

BACKLOG = 512
# Seconds: the site of a miehistod that was killed ends by itself, but not at once.
PATIENCE = 3.0


def listen_tcp(settings: Settings) -> socket.socket:
    """Listens on MIEHISTO_BIND (port 0: any free one).

    Raises:
        CannotRun: the address is taken, or not this machine's.
    """
    host, port = settings.bind_address
    until = time.monotonic() + PATIENCE
    while True:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                time.sleep(0.1)
                continue
            # Python adds the address to the kernel's words; getaddrinfo(3) has numbers and words of its own.
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror
            raise CannotRun(
                f"The site cannot listen on {settings.bind}: {reason}.",
                "Choose another address in MIEHISTO_BIND.",
            ) from error


def listen_unix(settings: Settings, account: Account) -> socket.socket:
    """Listens on RUN_DIR/miehistod.sock, for root and the site's group; takes the place of an old socket.

    Raises:
        CannotRun: the path is too long for a socket, or cannot be made.
    """
    path = settings.run_dir / "miehistod.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)  # our lock says that nobody listens there
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        os.chown(path, 0, account.gid)
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotRun(
            f"The site cannot listen on {path}: {error.strerror or error}.",
            "Choose another (shorter) MIEHISTO_RUN_DIR.",
        ) from error
    return listener
