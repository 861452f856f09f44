"""What of carried data root puts back: no more than the service's own user could have made himself.

An image may come from anywhere, and its list says of each file whose it is and what it may do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from worker.errors import JobFailed
from worker.files import shown
from worker.runmh.launch import Account, Refused

_SETGID = 0o2000


def check(roots: Iterable[Mapping[str, Any]], spec: Mapping[str, Any]) -> None:
    """Check the rights of what an image carries.

    Args:
        roots: what `carry_index.read` returned.
        spec: of the service; all is allowed to root's.

    Raises:
        JobFailed: something belongs to another user, or would give others' rights to who runs it.
    """
    account = account_of(spec)
    if account.uid == 0:
        return
    groups = {account.gid, *account.groups}
    for root in roots:
        for item in root["items"]:
            place = shown(f"{root['path']}/{item['path']}".rstrip("/"))
            if item["uid"] != account.uid:
                raise _refused(f"{place} belongs to user {item['uid']}, not to the service's, {account.name}")
            if item["kind"] == "file" and item["mode"] & _SETGID and item["gid"] not in groups:
                raise _refused(f"{place} would give the rights of group {item['gid']} to who runs it")
            if "security.capability" in item.get("xattrs", {}):
                raise _refused(f"{place} would give capabilities to who runs it")


def account_of(spec: Mapping[str, Any]) -> Account:
    """Return the user that a spec names.

    Raises:
        JobFailed: this node has none such.
    """
    try:
        return Account(str(spec.get("user", "")), str(spec.get("group", "")))
    except Refused as refusal:
        report = refusal.report
        raise JobFailed(report["code"], report["message"], report["remedy"]) from None


def _refused(why: str) -> JobFailed:
    return JobFailed(
        "data_refused",
        f"What the image carries is not put back: {why}.",
        "Restore another image of this service, or start it anew; only root's services carry such files.",
    )
