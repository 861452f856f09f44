"""The roles viewer, auditor, operator and admin: which permissions each has, and the groups that carry them.

It asks nobody for anything; `actors.py` does. What a role may see or change in Django's admin is listed here
too, so that a new model without a line here is seen by superusers only.
"""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate

SEE = "services.see"
OPERATE = "services.operate"
ADMINISTER = "services.administer"
AUDIT = "services.audit"
RESTORE_FOREIGN = "images.restore_foreign"

VIEWER, AUDITOR, OPERATOR, ADMIN = "viewer", "auditor", "operator", "admin"

_LOOKED_AT = (
    *(
        f"services.view_{model}"
        for model in ("node", "service", "job", "jobevent", "serviceevent", "auditevent")
    ),
    *(f"images.view_{model}" for model in ("image", "schedule")),
)
# Whoever edits users can make a superuser of himself: the role admin is as strong as that.
_EDITED = (
    *(f"auth.{verb}_user" for verb in ("view", "add", "change", "delete")),
    "auth.view_group",
    *(f"axes.{verb}_accessattempt" for verb in ("view", "delete")),
    *(f"services.{verb}_apitoken" for verb in ("view", "change", "delete")),
)

ROLES: dict[str, tuple[str, ...]] = {
    VIEWER: (SEE,),
    AUDITOR: (SEE, AUDIT),
    OPERATOR: (SEE, OPERATE),
    ADMIN: (SEE, AUDIT, OPERATE, ADMINISTER, RESTORE_FOREIGN, *_LOOKED_AT, *_EDITED),
}


def make_groups(**_signal: Any) -> None:
    """Make the groups of the roles, and give each exactly its permissions.

    Called after each `migrate`, when the permissions are there: on a fresh database a migration would be too
    early for them (Django makes them in post_migrate). A migration backwards may have taken some away. Who
    wants other permissions makes a group of his own.
    """
    from django.contrib.auth.models import Group, Permission  # not before the apps are loaded

    ids = {
        f"{app}.{codename}": pk
        for pk, app, codename in Permission.objects.values_list("pk", "content_type__app_label", "codename")
    }
    if AUDIT in ids and not Group.objects.filter(name=AUDITOR).exists():
        # Before there was this role, who might administer saw the audit.
        for group in Group.objects.filter(permissions=ids[ADMINISTER]):
            group.permissions.add(ids[AUDIT])
    for role, permissions in ROLES.items():
        group, _made = Group.objects.get_or_create(name=role)
        group.permissions.set([ids[name] for name in permissions if name in ids])


def connect() -> None:
    """Have the groups made after the last app's permissions."""
    # Django sends the signal for apps with models, in their order.
    last: AppConfig = [app for app in apps.get_app_configs() if app.models_module][-1]
    post_migrate.connect(make_groups, sender=last, dispatch_uid="services.roles")
