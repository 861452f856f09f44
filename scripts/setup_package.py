"""`miehisto-setup` of the Debian package: a CRIU for the kernel that runs; with --offline what comes before.

Which CRIU works hangs on the kernel that runs, not on the one of the build, and a maintainer script may not
fetch: so the package carries none.
"""

from __future__ import annotations

import argparse
import sys

from scripts.command import SetupError, say
from scripts.criu import find_criu, point
from scripts.host import check_host, ensure_user
from scripts.setup_host import ROOT, Setup, alone
from scripts.tini import ensure_tini


def main() -> int:
    """Set the package up; the exit status is 0, or 1 after a sentence that says why not."""
    parser = argparse.ArgumentParser(
        prog="miehisto-setup", description="Find or fetch a CRIU that works here."
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
            point(setup.prefix / "pycriu", found.pycriu_folder / "pycriu")
            say(f"criu  {found.version} dumped and restored the probe, {found.binary}")
    except SetupError as error:
        say(f"set-up stopped: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
