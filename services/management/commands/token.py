"""manage.py token: make a token for the API, list a user's tokens, or end one."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.core.management.base import CommandParser

from services.authentication import issue_as_asked, revoke
from services.models import ApiToken
from services.problems import Problem
from services.shell import ShellCommand, me, table


class Command(ShellCommand):
    help = "Make a token for a user of the site and print it, this once; or list and end his tokens."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", required=True, metavar="NAME", help="whose it is")
        parser.add_argument("--label", default="", help="what it is for")
        parser.add_argument("--days", default="90", help="until it ends, 0 for never (default: 90)")
        parser.add_argument("--list", action="store_true", help="list the user's tokens")
        parser.add_argument("--revoke", type=int, metavar="NUMBER", help="end the token of this number")

    def work(self, **options: Any) -> None:
        user = _user(options["user"])
        if options["list"]:
            tokens = ApiToken.objects.filter(user_id=user.pk).order_by("pk")
            rows = [
                (str(token.pk), str(token.expires_at or "never")[:16], token.label or "-") for token in tokens
            ]
            self.stdout.write(table(("NUMBER", "ENDS", "LABEL"), rows, (6, 16, 0)))
        elif options["revoke"] is not None:
            token = ApiToken.objects.filter(user_id=user.pk, pk=options["revoke"]).first()
            if token is None:
                raise Problem(
                    "token_not_found",
                    f"User {options['user']!r} has no token {options['revoke']}.",
                    f"See manage.py token --user {options['user']} --list.",
                    http_status=404,
                )
            revoke(token, actor=me(), source="manage")
        else:
            self.stdout.write(issue_as_asked(user, options["label"], options["days"], source="manage"))


def _user(name: str) -> AbstractBaseUser:
    user = get_user_model()._default_manager.filter(username=name).first()
    if user is None:
        raise Problem(
            "user_not_found",
            f"There is no user {name!r}.",
            f"Make one: manage.py createsuperuser --username {name}.",
            http_status=404,
        )
    return user
