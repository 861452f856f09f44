"""`miehisto-setup` of the Debian package: a CRIU for the kernel that runs; --offline: what needs no network.

Which CRIU works hangs on the kernel that runs, not on the one of the build, and a maintainer script may not
fetch: so the package carries none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts.command import SetupError, run, say, succeeds
from scripts.criu import find_criu, point
from scripts.host import check_host, ensure_user
from scripts.setup_host import ROOT, Setup, alone
from scripts.tini import ensure_tini

PARTS = ("miehisto-site.service", "miehisto-worker.service")


def start_units(*, again: bool) -> None:
    """Start what the package has enabled, which could not run without a CRIU.

    Args:
        again: CRIU is another one than before, so what runs must be restarted to use it; services run on.

    Raises:
        SetupError: a part does not start.
    """
    if not Path("/run/systemd/system").is_dir() or not succeeds(
        ["systemctl", "--quiet", "is-enabled", "miehisto.target"]
    ):
        return
    if again:
        succeeds(["systemctl", "try-restart", *PARTS])
    run(["systemctl", "start", "miehisto.target"], otherwise="systemd does not start miehisto.target.")
    for part in PARTS:
        if not succeeds(["systemctl", "--quiet", "is-active", part]):
            raise SetupError(f"{part} does not start: `journalctl -u {part}` says why.")
    say("units miehisto.target is started")


def main() -> int:
    """Set the package up; the exit status is 0, or 1 after a sentence that says why not."""
    parser = argparse.ArgumentParser(
        prog="miehisto-setup", description="Find or fetch a CRIU that works here, and start Miehistö."
    )
    parser.add_argument(
        "--offline", action="store_true", help="only the user and tini; the package does this"
    )
    options = parser.parse_args()
    setup = Setup(dev=False)
    setup.venv = ROOT / "venv"
    try:
        codename = check_host()
        with alone(setup.prefix):
            ensure_user(setup.user)
            tini = ensure_tini(setup.prefix)
            if options.offline:
                return 0
            say(f"tini  {tini}")
            found = find_criu(setup.prefix, codename, setup.probe)
            # The package's own environment has a link to this link.
            link = setup.prefix / "pycriu"
            before = link.resolve()
            point(link, found.pycriu_folder / "pycriu")
            say(f"criu  {found.version} dumped and restored the probe, {found.binary}")
        start_units(again=link.resolve() != before)
    except SetupError as error:
        say(f"set-up stopped: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
