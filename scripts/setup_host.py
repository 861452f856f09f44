"""`make setup`: runs the steps in order, a line each; the steps themselves are in the modules beside it."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.command import SetupError, digest, run, say, succeeds
from scripts.criu import criu_version, find_criu, inputs_digest
from scripts.host import RUNTIME_PACKAGES, TEST_PACKAGES, as_user, check_host, ensure_user, install_packages
from scripts.python_env import (
    choose_interpreter,
    compile_package,
    ensure_venv,
    install_package,
    install_requirements,
    link_pycriu,
    site_packages,
)
from scripts.stamps import Stamps
from scripts.tini import ensure_tini

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_PREFIX = Path("/opt/miehisto")


class Setup:
    """One run of the set-up, for one checkout."""

    def __init__(self, *, dev: bool, image: bool = False) -> None:
        """Read the settings that set-up itself obeys.

        Args:
            dev: adds what tests and linters need.
            image: builds a container's image, where nothing can be dumped: no probe, no database.
        """
        self.dev = dev
        self.image = image
        self.venv = ROOT / ".venv"
        self.prefix = Path(os.environ.get("MIEHISTO_PREFIX", DEFAULT_PREFIX)).absolute()
        self.user = os.environ.get("MIEHISTO_USER", "miehisto")

    def run(self, codename: str) -> None:
        """Do every step.

        Args:
            codename: of the host's release, for example "bookworm".
        Raises:
            SetupError: the first part that is missing and can't be got.
        """
        self.codename = codename
        names = [*RUNTIME_PACKAGES, *(TEST_PACKAGES if self.dev else ())]
        added = install_packages(names)
        _tell("packages", f"installed {' '.join(added)}" if added else "all there")
        _tell("user", f"{self.user} {'created' if ensure_user(self.user) else 'is there'}")
        self._python()
        self._tini()
        _tell("criu", self._criu())
        if self.prefix != DEFAULT_PREFIX:
            link, tini = self.prefix / "bin/criu", os.environ["MIEHISTO_TINI"]
            _tell("settings", f"start miehistod with MIEHISTO_CRIU={link} MIEHISTO_TINI={tini}")
        if not self.image:
            self._database()

    def _python(self) -> None:
        interpreter = choose_interpreter(self.user)
        created = ensure_venv(self.venv, interpreter)
        self.stamps = Stamps(self.venv / "setup-stamps.json")
        files = [ROOT / "requirements.txt", *([ROOT / "requirements-dev.txt"] if self.dev else [])]
        changed = install_requirements(self.venv, files, self.stamps)
        changed = install_package(self.venv, ROOT, self.stamps) or changed
        compile_package(self.venv, ROOT)
        _tell(
            "python",
            f"{interpreter}, .venv {'made' if created else 'brought up to date' if changed else 'is there'}",
        )

    def _tini(self) -> None:
        tini = os.environ.setdefault("MIEHISTO_TINI", str(ensure_tini(self.prefix)))
        if not succeeds(as_user(self.user, [tini, "--version"])):
            # Services run it as whatever user they have.
            raise SetupError(
                f"The user {self.user} cannot run {tini}: open the folders above it (chmod o+x)."
            )
        _tell("tini", tini)

    def _criu(self) -> str:
        """Return what to say of the CRIU in use; search only when what the choice hangs on has changed."""
        link = self.prefix / "bin/criu"
        linked = (site_packages(self.venv) / "pycriu/__init__.py").exists()
        if linked and link.exists() and self.stamps.fresh("criu", inputs_digest(self.prefix)):
            return f"{criu_version(link)} passed the probe before, {link.resolve()}"
        found = find_criu(self.prefix, self.codename, (lambda *_: "") if self.image else self.probe)
        link_pycriu(self.venv, found.pycriu_folder)
        if self.image:
            return f"{found.version}, {found.binary}; `mhctl check` probes it where it runs"
        self.stamps.done("criu", inputs_digest(self.prefix))
        return f"{found.version} dumped and restored the probe, {found.binary}"

    def probe(self, binary: Path, pycriu: Path) -> str:
        """Really dump and restore a process with this CRIU; return "" or the reason of the failure."""
        try:
            run(
                [self.venv / "bin/python", "-m", "worker.probe", "--criu", binary],
                env={"PYTHONPATH": f"{ROOT}:{pycriu}", "MIEHISTO_CRIU": str(binary)},
                otherwise="the dump-and-restore probe failed:",
                timeout=120,
            )
        except SetupError as error:
            return str(error)
        return ""

    def _database(self) -> None:
        """Make the folders, the secret key and the tables; miehistod itself knows how."""
        state = os.environ.get("MIEHISTO_STATE_DIR", "/var/lib/miehisto")
        # Another database, named by an address, is not looked at from here.
        lost = "DATABASE_URL" not in os.environ and not Path(state, "database/db.sqlite3").exists()
        settings = [
            os.environ.get(name, "") for name in ("DATABASE_URL", "MIEHISTO_RUN_DIR", "MIEHISTO_LOG_DIR")
        ]
        migrations = sorted(ROOT.glob("*/migrations/*.py"))
        key = digest(state, *settings, ROOT / "requirements.txt", *migrations)
        if self.stamps.fresh("database", key) and not lost:
            _tell("database", "is there")
            return
        run([self.venv / "bin/miehistod", "--prepare"], otherwise="Cannot prepare the database.", timeout=300)
        self.stamps.done("database", key)
        _tell("database", "prepared")


def _tell(step: str, text: str) -> None:
    say(f"{step:<10}  {text}")


@contextmanager
def alone(prefix: Path) -> Iterator[None]:
    """Wait until no other set-up, of another checkout perhaps, works below the same prefix."""
    prefix.mkdir(parents=True, exist_ok=True)
    with (prefix / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting     for another set-up to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Set up this host; the exit status is 0, or 1 after a sentence that names the missing part."""
    parser = argparse.ArgumentParser(
        prog="scripts/setup", description="Set up Miehistö on this Debian 12 or 13."
    )
    parser.add_argument("--dev", action="store_true", help="also what the tests and linters need")
    parser.add_argument("--image", action="store_true", help="inside the build of a container's image")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        setup = Setup(dev=options.dev, image=options.image)
        codename = check_host()
        with alone(setup.prefix):
            setup.run(codename)
    except SetupError as error:
        say(f"set-up stopped: {error}")
        return 1
    say(f"Miehistö is set up ({time.monotonic() - start:.1f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
