#!/usr/bin/env python
"""Django's command line for the server's own shell. It knows only which settings to load."""

import os
import sys

from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "miehisto_web.settings")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
