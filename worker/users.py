"""Names of users as this node knows them, for people who look. It decides nothing by them."""

from __future__ import annotations

import pwd


def user_name(uid: object) -> str:
    """Return the name of a user by number; "" where this node knows none, or it is no number."""
    if not isinstance(uid, int):
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return ""


def name_users(processes: object) -> None:
    """Add to each process its `user`: what this node calls its `uid` now, "" for nothing.

    processes: a list of them as objects; whatever else is in it is passed over, for it may be what an image
    made its reader say. Each number is asked for once.
    """
    names: dict[str, str] = {}
    for process in processes if isinstance(processes, list) else []:
        if isinstance(process, dict):
            uid = process.get("uid")
            key = repr(uid)
            if key not in names:
                names[key] = user_name(uid)
            process["user"] = names[key]
