"""Who asks for something and whether they may. It knows no service and no job."""

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, PermissionsMixin

from services.problems import not_allowed

PERMISSION = "services.operate"

# A user of the site, or the name of someone who already proved himself elsewhere: root in the server's
# shell, or the agent.
Actor = AbstractBaseUser | AnonymousUser | str


def name_of(actor: Actor) -> str:
    """Return the name to write on a job."""
    return actor if isinstance(actor, str) else actor.get_username()


def require_operator(actor: Actor) -> None:
    """Raise Problem not_allowed unless `actor` may change services, images and jobs."""
    if isinstance(actor, str):
        return
    if isinstance(actor, PermissionsMixin | AnonymousUser) and actor.is_active and actor.has_perm(PERMISSION):
        return
    raise not_allowed(
        f"User {name_of(actor) or 'nobody'} may look but not change anything.",
        f"Ask an administrator for the permission {PERMISSION!r}.",
    )
