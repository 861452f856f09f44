"""Live pages beside the rest of the host: what they may take of it, and whom they serve."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from services.threads import POLITE
from tests.stack import CHECKOUT

A_SITE = """
import asyncio, os, sys
from django.conf import settings
from services.threads import in_polite_thread
settings.configure()
os.nice(int(sys.argv[1]))
os.setuid(65534)
print(asyncio.run(in_polite_thread(os.getpriority, os.PRIO_PROCESS, 0)))
"""


@pytest.mark.parametrize("nicer", [0, 15])
def test_pages_are_rendered_politely_however_nice_the_site_was_started(nicer: int) -> None:
    command = [sys.executable, "-c", A_SITE, str(nicer)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    own = os.getpriority(os.PRIO_PROCESS, 0) + nicer
    assert done.stdout.strip() == str(min(19, max(POLITE, own))), done.stderr
