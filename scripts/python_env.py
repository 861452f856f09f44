"""The virtual environment: interpreter, pinned requirements, this package, pycriu; knows no CRIU binary."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from scripts.command import SetupError, digest, run, succeeds
from scripts.host import OLDEST_PYTHON, as_user
from scripts.stamps import Stamps

_TOO_OLD = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON!r})"
_WHICH = "import sys; print(sys.version_info[:2], sys.base_prefix)"
PACKAGES = ("miehisto_web", "services", "images", "dashboard", "metrics", "worker", "miehistod", "mhctl")
COMMANDS = ("miehistod", "mhctl", "runmh")


def choose_interpreter(user: str) -> Path:
    """Return a Python that is new enough and that the unprivileged user can run too.

    A `python3` on PATH may be a shim inside root's home folder, which nobody else can execute, so
    Debian's own comes first and everything is tried as the user.

    Raises:
        SetupError: there is none.
    """
    on_path = [shutil.which(f"python3{minor}") for minor in ("", ".14", ".13", ".12", ".11")]
    for name in ("/usr/bin/python3", *filter(None, on_path)):
        if succeeds(as_user(user, [name, "-I", "-c", _TOO_OLD])):
            return Path(name)
    raise SetupError(
        f"No Python 3.11 or newer that the user {user} can run was found: run `apt-get install python3-venv`."
    )


def ensure_venv(venv: Path, interpreter: Path) -> bool:
    """Create the virtual environment unless a usable one stands there; return whether it was created.

    One that was copied from another folder, or whose interpreter is gone, is not usable: its scripts name the
    old place.
    """
    pip = venv / "bin/pip"
    if pip.exists() and f"{venv}/bin/" in pip.read_text(errors="replace")[:400]:
        wanted = run([interpreter, "-I", "-c", _WHICH], otherwise=f"{interpreter} does not run.")
        own: list[str | Path] = [venv / "bin/python", "-I", "-c", _WHICH]
        if succeeds(own) and run(own, otherwise="The environment's Python does not run.") == wanted:
            return False
    shutil.rmtree(venv, ignore_errors=True)
    run(
        [interpreter, "-m", "venv", venv],
        otherwise="Cannot make a virtual environment: is python3-venv installed?",
    )
    # Python 3.11 adds setuptools, whose .pth file would slow down every start of mhctl.
    if (site_packages(venv) / "setuptools").exists():
        run([*_pip(venv), "uninstall", "--quiet", "--yes", "setuptools"], otherwise="pip does not run.")
    return True


def _pip(venv: Path) -> list[str | Path]:
    """Return the words that start the environment's own pip, which then asks nobody anything."""
    return [venv / "bin/python", "-m", "pip", "--disable-pip-version-check", "--no-input"]


def site_packages(venv: Path) -> Path:
    """Return the folder where the environment's packages lie."""
    return next((venv / "lib").glob("python3.*/site-packages"))


def locked_names(text: str) -> Iterator[str]:
    """Yield the normalised names of the packages that a requirements file pins."""
    for match in re.finditer(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==", text, flags=re.MULTILINE):
        yield normalised(match[1])


def normalised(name: str) -> str:
    """Return a package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install_requirements(venv: Path, files: Iterable[Path], stamps: Stamps) -> bool:
    """Install the pinned requirements, remove what no lock file names; return whether there was work.

    Raises:
        SetupError: the index can't be reached, or a file's hash is not the pinned one.
    """
    work = False
    for path in files:
        step, key = path.stem, digest(path)
        if not stamps.fresh(step, key):
            run(
                [*_pip(venv), "install", "--quiet", "--require-hashes", "--requirement", path],
                otherwise=f"pip cannot install {path.name}: is the Python package index reachable?",
            )
            stamps.done(step, key)
            work = True
    if work:
        remove_unlocked(venv)
    return work


def remove_unlocked(venv: Path) -> None:
    """Uninstall what neither lock file names: a forgotten requirement must show here, not elsewhere."""
    root = venv.parent
    kept = {"miehisto", "pip"}
    for path in (root / "requirements.txt", root / "requirements-dev.txt"):
        kept |= set(locked_names(path.read_text()))
    installed = run([*_pip(venv), "list", "--format=freeze"], otherwise="pip cannot list what it installed.")
    extra = [name for name in locked_names(installed) if name not in kept]
    if extra:
        uninstall = [*_pip(venv), "uninstall", "--quiet", "--yes", *extra]
        run(uninstall, otherwise=f"pip cannot remove {' '.join(extra)}.")


def install_package(venv: Path, root: Path, stamps: Stamps) -> bool:
    """Install this checkout, editable, so that the commands exist; return whether there was work."""
    key = digest(root / "pyproject.toml")
    if stamps.fresh("package", key) and all((venv / "bin" / name).exists() for name in COMMANDS):
        return False
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable"]
    run([*_pip(venv), "install", *options, root], otherwise="pip cannot install this checkout itself.")
    for leftover in site_packages(venv).glob("miehisto-*.pth"):
        # A link made by hand; pip's own has another name.
        leftover.unlink()
    stamps.done("package", key)
    return True


def compile_package(venv: Path, root: Path) -> None:
    """Keep the bytecode of this checkout: the site's user cannot write it, and mhctl starts twice as fast."""
    folders = [root / name for name in PACKAGES if (root / name).is_dir()]
    words: list[str | Path] = [venv / "bin/python", "-I", "-m", "compileall", "-q", *folders]
    run(words, otherwise="Python cannot compile this checkout.")


def link_pycriu(venv: Path, folder: Path) -> bool:
    """Make the pycriu in `folder` importable in the environment; return whether the link was changed."""
    link, target = site_packages(venv) / "pycriu", folder / "pycriu"
    if link.is_symlink() and link.readlink() == target:
        return False
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    fresh = link.with_name("pycriu.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    return True
