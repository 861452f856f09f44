"""manage.py token: make a token for the API; it is shown this once."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser

from services.authentication import issue
from services.problems import Problem
from services.shell import ShellCommand


class Command(ShellCommand):
    help = "Make a token for a user of the site; prints it once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", required=True, metavar="NAME")
        parser.add_argument("--label", default="", help="what it is for")

    def work(self, **options: Any) -> None:
        users = get_user_model()._default_manager
        user = users.filter(username=options["user"]).first()
        if user is None:
            raise Problem(
                "user_not_found",
                f"There is no user {options['user']!r}.",
                f"Make one: manage.py createsuperuser --username {options['user']}.",
                http_status=404,
            )
        self.stdout.write(issue(user, options["label"][:100]))
