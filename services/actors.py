"""Who asks for something and whether they may. It knows no service and no job."""

import grp
import os
import pwd
from contextlib import suppress

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, PermissionsMixin, User

from services.problems import Problem, not_allowed
from services.roles import ADMIN, ADMINISTER, AUDIT, AUDITOR, OPERATE, OPERATOR, SEE, VIEWER

# A user of the site, or the name of someone who already proved himself elsewhere: root in the server's
# shell, or the agent.
Actor = AbstractBaseUser | AnonymousUser | str


def name_of(actor: Actor) -> str:
    """Return the name to write on a job."""
    return actor if isinstance(actor, str) else actor.get_username()


def names_like(text: str) -> set[str]:
    """Return the names that rows may have of somebody who is called so, in capitals or not.

    Of a user who was deleted, only that which was typed, and it in small letters.
    """
    users = User.objects.filter(username__iexact=text).values_list("username", flat=True)
    return {text, text.lower(), *users}


def may(actor: Actor, permission: str) -> bool:
    """Tell whether `actor` has a permission ("app.codename"). One who was deactivated has none."""
    if isinstance(actor, str):
        return True
    return isinstance(actor, PermissionsMixin) and actor.is_active and actor.has_perm(permission)


def require(actor: Actor, permission: str, what: str, role: str) -> None:
    """Raise Problem not_allowed unless `actor` has a permission.

    what: what he may not do, as the rest of "User NAME may not …". role: the one that has the permission.
    """
    if not may(actor, permission):
        raise refusal(actor, what, role)


def refusal(actor: Actor, what: str, role: str) -> Problem:
    """Return the Problem of somebody who lacks a role; the arguments are those of `require`."""
    return not_allowed(
        f"User {name_of(actor) or 'nobody'} may not {what}.", f"Ask an administrator for the role {role!r}."
    )


def require_viewer(actor: Actor) -> None:
    """Raise Problem not_allowed unless `actor` may see services, images and jobs."""
    require(actor, SEE, "see anything here", VIEWER)


def require_operator(actor: Actor) -> None:
    """Raise Problem not_allowed unless `actor` may change services, images and jobs."""
    require(actor, OPERATE, "change anything here", OPERATOR)


def require_admin(actor: Actor, what: str) -> None:
    """Raise Problem not_allowed unless `actor` may administer; `what` as in `require`."""
    require(actor, ADMINISTER, what, ADMIN)


def require_auditor(actor: Actor) -> None:
    """Raise Problem not_allowed unless `actor` may see the audit."""
    require(actor, AUDIT, "see the audit", AUDITOR)


def require_account(actor: Actor, user: str, group: str) -> None:
    """Raise Problem not_allowed unless `actor` may bring to life what runs as this user and group."""
    how = reserved(user, group)
    if how:
        require_admin(actor, f"run anything {how}")


def reserved(user: str, group: str) -> str:
    """Return how a service of this user and group runs, as the rest of "It runs …", if that is for admins.

    Root's processes own the node, and the site's own user owns the database that says who may do what, so
    both are for admins. So is a group that the user is not in: one such as disk or shadow is as good as root.
    The names are resolved on this host; a node asks its own policy again.
    """
    site = _row(settings.MIEHISTO_USER)
    uid = _number(user or "0", "user")
    gid = _number(group, "group") if group else None
    own = _groups(user or "0")
    groups = own if gid is None else own | {gid}
    if uid == 0 or 0 in groups:
        return "as root"
    if site and (uid == site.pw_uid or site.pw_gid in groups):
        return "as the site's own user"
    return f"in the group {group}, which is none of user {user}'s own" if groups > own else ""


def _row(name: str) -> pwd.struct_passwd | None:
    with suppress(KeyError):
        return pwd.getpwnam(name)
    return None


def _groups(user: str) -> set[int]:
    """Return the groups of a user given by name or number, as the worker gives them to a service."""
    number = _number(user, "user")
    if number is None:
        return set()
    try:
        row = pwd.getpwuid(number)
    except (KeyError, OverflowError):
        return {number}
    return {row.pw_gid, *os.getgrouplist(row.pw_name, row.pw_gid)}


def _number(account: str, field: str) -> int | None:
    """Return the number of a user or group given by name or number; None when this host doesn't know it."""
    if account.isascii() and account.isdigit():
        return int(account)
    with suppress(KeyError):
        return pwd.getpwnam(account).pw_uid if field == "user" else grp.getgrnam(account).gr_gid
    return None
