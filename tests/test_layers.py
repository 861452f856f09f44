"""The arrows between the parts: imports go downwards only. Read from the source, nothing is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"miehisto_web", "services", "images", "dashboard", "metrics", "worker", "miehistod", "mhctl"}
WITH_ROWS = {
    "tasks.py",
    "handlers.py",
    "agent.py",
    "booting.py",
    "replacing.py",
    "reconcile.py",
    "reading.py",
    "sampling.py",
    "background.py",
}  # the worker's only modules that may know Django and rows


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Return the first part of each imported module's name, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found.add((node.module or "").partition(".")[0])
    return found


def offenders(files: list[Path], forbidden: set[str]) -> dict[str, set[str]]:
    return {str(path.relative_to(ROOT)): wrong for path in files if (wrong := imports_of(path) & forbidden)}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("miehisto_web", {"worker", "miehistod", "mhctl"}),
        ("dashboard", {"worker", "miehistod", "mhctl", "miehisto_web"}),
        ("metrics", {"worker", "miehistod", "mhctl", "miehisto_web", "dashboard"}),
        ("images", {"worker", "miehistod", "mhctl", "miehisto_web", "dashboard"}),
        ("services", {"worker", "miehistod", "mhctl", "miehisto_web", "images", "dashboard"}),
        ("miehistod", {"django", "services", "images", "miehisto_web"}),
    ],
)
def test_nobody_imports_upwards(package: str, forbidden: set[str]) -> None:
    # What drives the engine from the server's shell stands between site and worker.
    engine_commands = {"check_host.py", "rescan.py"}
    assert offenders([f for f in files_of(package) if f.name not in engine_commands], forbidden) == {}


def test_the_engine_knows_no_rows() -> None:
    files = [
        path
        for path in files_of("worker")
        if path.name not in WITH_ROWS and "management" not in path.relative_to(ROOT).parts
    ]
    assert offenders(files, {"django", "celery", "services", "images", "dashboard", "miehisto_web"}) == {}


def test_mhctl_is_alone_with_the_standard_library() -> None:
    for path in files_of("mhctl"):
        foreign = imports_of(path) - {"mhctl", "__future__"} - set(sys.stdlib_module_names)
        assert not foreign, f"{path.name} imports {foreign}"


def test_states_are_plain_python() -> None:
    assert imports_of(ROOT / "services/states.py") <= set(sys.stdlib_module_names)


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for package in OURS
        for path in files_of(package)
        if "migrations" not in path.parts
        and path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_miehistod_starts_without_pycriu() -> None:
    """It comes with CRIU, which the Debian package lacks until miehisto-setup has run."""
    without = "import sys; sys.modules['pycriu'] = None; import miehistod.main"
    subprocess.run([sys.executable, "-c", without], cwd=ROOT, check=True)
