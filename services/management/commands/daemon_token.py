"""manage.py daemon_token: a fresh token for root's mhctl on this node; miehistod calls it at its start."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from services.authentication import issue
from services.models import ApiToken
from services.shell import ShellCommand

USER = "root"


class Command(ShellCommand):
    help = "Print a fresh token for the user root; this node's earlier one ends."

    def work(self, **_options: Any) -> None:
        label = f"miehistod on {settings.MIEHISTO_NODE}"[:100]
        with transaction.atomic():
            user, made = User.objects.get_or_create(
                username=USER, defaults={"is_superuser": True, "is_staff": True}
            )
            if made:
                user.set_unusable_password()
                user.save(update_fields=["password"])
            ApiToken.objects.filter(user=user, label=label).delete()
            token = issue(user, label)
        self.stdout.write(token)
