"""What each setting is for, in the words of docs/reference/settings.md. Reads none of them."""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """An environment variable.

    Attributes:
        default: what holds where it is not set, in Markdown.
        meaning: what it is for, in Markdown.
    """

    default: str
    meaning: str


SETTINGS = {
    "MIEHISTO_STATE_DIR": Setting("`/var/lib/miehisto`", "Images, services' specs and the database."),
    "MIEHISTO_RUN_DIR": Setting("`/run/miehisto`", "Sockets, the token of root's `mhctl`, what runs now."),
    "MIEHISTO_LOG_DIR": Setting("`/var/log/miehisto`", "One log a service."),
    "MIEHISTO_BIND": Setting(
        "`127.0.0.1:14444`",
        (
            "HOST:PORT of the site. Its host is allowed as a host name; `0.0.0.0` and `[::]` need "
            "`MIEHISTO_ALLOWED_HOSTS` too."
        ),
    ),
    "MIEHISTO_NODE": Setting(
        "the host's name",
        ("The name of this node and of its queue: letters, digits, dots, dashes and underscores."),
    ),
    "MIEHISTO_USER": Setting("`miehisto`", "The unprivileged user of the site, the scheduler and Redis."),
    "MIEHISTO_POLICY": Setting(
        "`/etc/miehisto/policy.toml`, if it is there",
        (
            "What services may be on this node: [policy.md](../policy.md). A file that is named "
            "here must be there."
        ),
    ),
    "MIEHISTO_CRIU": Setting("`/opt/miehisto/bin/criu`, else `criu` on the PATH", "CRIU's program."),
    "MIEHISTO_TINI": Setting(
        "the newest `/opt/miehisto/bin/tini-*`", "The first process in each service's PID namespace."
    ),
    "MIEHISTO_START_SETTLE": Setting("`0.5`", "Seconds that a service must stay alive to count as started."),
    "MIEHISTO_JOB_TIMEOUT": Setting("`600`", "Seconds after which a job that got nowhere is given up."),
    "MIEHISTO_TAKE_OVER_TIMEOUT": Setting(
        "`60`",
        (
            "Seconds that a service whose supervisor was killed runs on where none can take over, "
            "before it is dumped and restored with a new one, if it has `--restore-on-boot`."
        ),
    ),
    "MIEHISTO_LOG_FORMAT": Setting(
        "`text`",
        (
            "What `miehistod` writes to stdout: `text`, or `json`, one object a line ([what is in "
            "it](../settings.md#logs))."
        ),
    ),
    "MIEHISTO_SECRET_KEY": Setting(
        "the file `STATE_DIR/database/secret_key`, made at the first start",
        "Django's key for sessions and forms.",
    ),
    "MIEHISTO_DEBUG": Setting(
        "`false`", "Django's debug pages. They show settings and rows: never on a server."
    ),
    "MIEHISTO_ALLOWED_HOSTS": Setting(
        "empty",
        (
            "More host names of the site, with commas. `localhost`, `127.0.0.1`, `[::1]`, the "
            "node's name and the host in `MIEHISTO_BIND` are always allowed."
        ),
    ),
    "MIEHISTO_HTTPS": Setting(
        "`false`",
        (
            "The site stands behind a proxy that speaks HTTPS and sets (and overwrites) "
            "`X-Forwarded-Proto`: cookies become secure, HSTS is sent. Without it, `miehistod` and "
            "`manage.py check --deploy` warn of a bind that other hosts reach."
        ),
    ),
    "MIEHISTO_PROXIES": Setting(
        "empty",
        (
            "Addresses and networks, with commas, of proxies whose `X-Forwarded-For` is believed; "
            "`unix` for one that uses RUN_DIR/miehistod.sock. Logins are throttled, and the record "
            "is written, by the address that this yields."
        ),
    ),
    "DATABASE_URL": Setting(
        "`sqlite:///STATE_DIR/database/db.sqlite3`",
        (
            "`sqlite:///PATH` (three slashes and an absolute path make four) or "
            "`postgres://USER:PASSWORD@HOST:PORT/NAME`."
        ),
    ),
    "DATABASE_PASSWORD_FILE": Setting(
        "empty",
        (
            "A file, readable by root alone, with the password that the address in `DATABASE_URL` "
            "then leaves out; for secrets that a container or systemd gives as files."
        ),
    ),
    "CELERY_BROKER_URL": Setting(
        "`redis+socket://RUN_DIR/redis.sock`",
        (
            "The queue. With the default, `miehistod` starts a Redis of its own, on a socket for "
            "root and `MIEHISTO_USER` alone."
        ),
    ),
}
"""Of miehistod, which hands its environment on to the site, the worker and the scheduler."""

OF_MHCTL = {
    "MIEHISTO_URL": Setting(
        "`unix:RUN_DIR/miehistod.sock`", "Where the daemon is: `unix:PATH` or `http(s)://HOST:PORT`."
    ),
    "MIEHISTO_TOKEN": Setting(
        "the file `RUN_DIR/token`", "The token to show; `manage.py token --user NAME` makes one."
    ),
}
"""Those that mhctl alone reads."""
