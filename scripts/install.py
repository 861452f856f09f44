"""`make install` and `make uninstall`: the commands, systemd's units, /etc/miehisto; removes only its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts import links
from scripts.command import SetupError, run, say, succeeds
from scripts.host import as_user

ROOT = Path(__file__).resolve().parent.parent
UNITS = ROOT / "deploy/systemd"
SETTINGS = ROOT / "deploy/miehisto.env"
POLICY = ROOT / "deploy/policy.toml.example"
SERVICES_OWN = ("miehisto-drain.service", "miehisto.slice")
CONFIG = Path("etc/miehisto")
MARK = "# From Miehistö's make install, which replaces it; changes belong into `systemctl edit`.\n"
MANAGE = "miehisto-manage"
_MANAGE_MARK = "# Miehistö's manage.py, or with --run any command, with the settings that its units have.\n"
_MANAGE_TEXT = f"""#!/bin/sh
{_MANAGE_MARK}if [ "$1" = --run ]; then shift; else set -- @VENV@/bin/python3 @HOME@/manage.py "$@"; fi
exec /usr/bin/python3 -B @HOME@/scripts/with_settings.py "$@"
"""


def unit_texts(commands: Path) -> dict[str, str]:
    """Return systemd's units by name.

    Args:
        commands: the folder with miehistod and mhctl, as systemd will see it.
    """
    return {
        path.name: path.read_text(encoding="utf-8").replace("@BIN@", str(commands))
        for path in sorted(UNITS.glob("miehisto*"))
    }


def manage_text(home: Path, venv: Path) -> str:
    """Return the command miehisto-manage.

    Args:
        home: where manage.py lies.
        venv: the environment that it runs in.
    """
    return _MANAGE_TEXT.replace("@HOME@", str(home)).replace("@VENV@", str(venv))


def install_manage(folder: Path) -> None:
    """Put miehisto-manage beside the links to the other commands.

    Raises:
        SetupError: a foreign file has its name.
    """
    path = folder / MANAGE
    if path.exists() and not is_own(path):
        raise SetupError(f"{path} is not from `make install`, so it stays: move it away.")
    fresh = folder / f".{MANAGE}.new"
    fresh.write_text(manage_text(ROOT, ROOT / ".venv"), encoding="utf-8")
    fresh.chmod(0o755)
    fresh.replace(path)


def below(destination: Path, path: Path) -> Path:
    """Return where a path of the system lies while it is staged below DESTDIR."""
    return destination / path.relative_to("/")


def install_units(folder: Path, commands: Path) -> None:
    """Write the units into a folder; a file of somebody else's with such a name stays.

    Raises:
        SetupError: there is one.
    """
    texts = unit_texts(commands)
    for name in texts:
        if (folder / name).exists() and not is_own(folder / name):
            raise SetupError(f"{folder / name} is not from `make install`, so it stays: move it away.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        fresh = folder / f".{name}.new"
        fresh.write_text(MARK + text, encoding="utf-8")
        fresh.replace(folder / name)


def is_own(path: Path) -> bool:
    """Tell whether `make install` has written a file: a unit, or miehisto-manage."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text.startswith((MARK, f"#!/bin/sh\n{_MANAGE_MARK}"))


def uninstall_units(folder: Path) -> list[str]:
    """Remove what `install_units` wrote and return the names."""
    own = [path for path in sorted(folder.glob("miehisto*")) if path.is_file() and is_own(path)]
    for path in own:
        path.unlink()
    return [path.name for path in own]


def install_config(folder: Path) -> None:
    """Put the settings' file and the example of a policy into /etc/miehisto; settings that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / SETTINGS.name
    if not settings.exists():
        settings.write_bytes(SETTINGS.read_bytes())
        settings.chmod(0o600)  # it may come to hold a password
    (folder / POLICY.name).write_bytes(POLICY.read_bytes())


def uninstall_config(folder: Path) -> None:
    """Remove the example, and settings that nobody has changed; whatever else is there stays."""
    (folder / POLICY.name).unlink(missing_ok=True)
    settings = folder / SETTINGS.name
    if settings.exists() and settings.read_bytes() == SETTINGS.read_bytes():
        settings.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _reload(destination: Path) -> None:
    if destination == Path("/") and Path("/run/systemd/system").is_dir():
        run(["systemctl", "daemon-reload"], otherwise="systemd does not read the units anew.")


def _site_can_read(user: str) -> bool:
    return succeeds(as_user(user, ["/usr/bin/test", "-r", ROOT / "miehisto_web/__init__.py"]))


def install(options: argparse.Namespace) -> None:
    """`make install`."""
    bindir = below(options.destdir, options.bindir)
    links.install(ROOT / ".venv/bin", bindir)
    install_manage(bindir)
    say(f"{', '.join(links.COMMANDS)} are linked into {bindir}, and {MANAGE} is there.")
    units, config = below(options.destdir, options.unitdir), options.destdir / CONFIG
    install_units(units, options.bindir)
    install_config(config)
    _reload(options.destdir)
    say(f"Units are in {units}, settings in {config}: `systemctl enable --now miehisto.target` starts all.")
    if not _site_can_read(options.user):
        say(
            f"warning: the user {options.user} cannot read {ROOT}, and the site's unit has no right to show"
            " it to him: move this clone to a folder that is open (/opt), then `make setup install`."
        )


def uninstall(options: argparse.Namespace) -> None:
    """`make uninstall`: ends the units, but no service; state, images and changed settings stay."""
    units = below(options.destdir, options.unitdir)
    if options.destdir == Path("/") and Path("/run/systemd/system").is_dir():
        ours = [path.name for path in units.glob("miehisto*") if path.is_file() and is_own(path)]
        if ours:
            # Some are not stopped: that of the drain would dump services, that of their slice end them.
            succeeds(["systemctl", "disable", "miehisto-drain.service", "miehisto.target"])
            succeeds(["systemctl", "stop", *(name for name in ours if name not in SERVICES_OWN)])
    bindir = below(options.destdir, options.bindir)
    removed = links.uninstall(bindir) + uninstall_units(units)
    if (bindir / MANAGE).is_file() and is_own(bindir / MANAGE):
        (bindir / MANAGE).unlink()
        removed.append(MANAGE)
    uninstall_config(options.destdir / CONFIG)
    _reload(options.destdir)
    say(f"removed: {', '.join(removed) or 'nothing'}. Services and images stay.")


def main() -> int:
    """Install or uninstall; the exit status is 0, or 1 after a sentence that says why not."""
    parser = argparse.ArgumentParser(prog="scripts.install", description="Install Miehistö on this host.")
    parser.add_argument("verb", choices=["install", "uninstall"])
    parser.add_argument("--destdir", type=Path, default=Path("/"))
    parser.add_argument("--bindir", type=Path, required=True)
    parser.add_argument("--unitdir", type=Path, required=True)
    parser.add_argument("--user", default="miehisto")
    options = parser.parse_args()
    try:
        {"install": install, "uninstall": uninstall}[options.verb](options)
    except (SetupError, OSError) as error:
        say(f"cannot {options.verb}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
