"""Settings: every name is documented, the defaults are safe."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from miehisto_web.described import OF_MHCTL, SETTINGS
from miehisto_web.environment import (
    POSTGRESQL_OPTIONS,
    database_from_url,
    host_of_bind,
    newest_tini,
    secret_key,
)
from miehistod.settings import read

KEY = "a key that is long, and of many kinds of letters: 0123456789"
ROOT = Path(__file__).parent.parent
NAME = re.compile(r"\b(?:MIEHISTO_[A-Z_]*[A-Z]|DATABASE_URL|DATABASE_PASSWORD_FILE|CELERY_BROKER_URL)\b")
PACKAGES = ("miehisto_web", "services", "images", "worker", "miehistod", "mhctl")


def names_in(path: Path) -> set[str]:
    return set(NAME.findall(path.read_text(encoding="utf-8")))


def test_every_setting_is_documented_and_every_documented_one_is_read() -> None:
    read: set[str] = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            read |= names_in(file) if file.name != "described.py" else set()
    assert read == SETTINGS.keys() | OF_MHCTL.keys()


def defaults_in(path: Path) -> dict[str, str]:
    """Return what `env.TYPE(NAME, DEFAULT)` and `env.str(NAME, "") or DEFAULT` say, as the page writes it."""
    found: dict[str, str] = {}

    def add(node: ast.AST, default: ast.AST) -> None:
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).startswith("env.")
            and isinstance(default, ast.Constant)
            and default.value != ""
        ):
            value = default.value
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            found[ast.literal_eval(node.args[0])] = shown.lower() if isinstance(value, bool) else shown

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and len(node.args) > 1:
            add(node, node.args[1])
        elif isinstance(node, ast.BoolOp):
            add(node.values[0], node.values[-1])
    return found


def test_the_defaults_on_the_page_are_those_of_the_code() -> None:
    found = defaults_in(ROOT / "miehisto_web/settings.py")
    assert {"MIEHISTO_JOB_TIMEOUT": "600", "MIEHISTO_HTTPS": "false"}.items() <= found.items()
    for name, default in found.items():
        assert SETTINGS[name].default == f"`{default}`", name


def loaded(**environment: str) -> dict[str, Any]:
    """Return settings as a process with this environment has them."""
    program = (
        "import json; from django.conf import settings as s;"
        "print(json.dumps({k: getattr(s, k) for k in ('DEBUG', 'ALLOWED_HOSTS', 'SESSION_COOKIE_SECURE',"
        " 'SESSION_COOKIE_HTTPONLY', 'MIEHISTO_NODE', 'CELERY_BROKER_URL', 'SECRET_KEY')}))"
    )
    clean = {key: value for key, value in os.environ.items() if not NAME.fullmatch(key)}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | {"DJANGO_SETTINGS_MODULE": "miehisto_web.settings"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(answer.stdout))


def test_the_defaults_are_safe(tmp_path: Path) -> None:
    settings = loaded(**dict.fromkeys(names_in(ROOT / "miehisto_web/settings.py"), ""))
    assert settings["DEBUG"] is False
    assert settings["SESSION_COOKIE_HTTPONLY"] is True
    assert {"localhost", "127.0.0.1", "[::1]", settings["MIEHISTO_NODE"]} <= set(settings["ALLOWED_HOSTS"])
    assert "*" not in settings["ALLOWED_HOSTS"]
    assert settings["CELERY_BROKER_URL"] == "redis+socket:///run/miehisto/redis.sock"
    empty = {"MIEHISTO_STATE_DIR": str(tmp_path)}
    assert loaded(**empty)["SECRET_KEY"] != loaded(**empty)["SECRET_KEY"], "each process makes one up"


def test_hosts_and_https_come_from_the_environment() -> None:
    settings = loaded(
        MIEHISTO_BIND="192.0.2.7:80", MIEHISTO_ALLOWED_HOSTS="a.example,b.example", MIEHISTO_HTTPS="1"
    )
    assert {"192.0.2.7", "a.example", "b.example"} <= set(settings["ALLOWED_HOSTS"])
    assert settings["SESSION_COOKIE_SECURE"] is True


def checked(**environment: str) -> str:
    """Return what `manage.py check --deploy` says."""
    clean = {key: value for key, value in os.environ.items() if not NAME.fullmatch(key)}
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy"],
        env=clean
        | {"DATABASE_URL": "sqlite:///:memory:", "MIEHISTO_SECRET_KEY": "k" * 25 + KEY}
        | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_a_site_for_its_own_host_or_behind_https_has_nothing_to_mend() -> None:
    for environment in (
        {},
        {"MIEHISTO_BIND": "[::1]:80"},
        {"MIEHISTO_BIND": "0.0.0.0:80", "MIEHISTO_HTTPS": "1"},
    ):
        assert "no issues" in checked(**environment), environment


def test_a_site_that_strangers_reach_without_https_is_warned_of() -> None:
    said = checked(MIEHISTO_BIND="192.0.2.7:80")
    assert "miehisto.W001" in said and "security.W010" in said
    environment = {"MIEHISTO_NODE": "n", "MIEHISTO_BIND": "192.0.2.7:80"}
    assert read(environment).is_open
    assert not read(environment | {"MIEHISTO_HTTPS": "1"}).is_open
    assert not read(environment | {"MIEHISTO_BIND": "localhost:80"}).is_open
    assert read(environment | {"MIEHISTO_BIND": "0.0.0.0:80"}).is_open


def test_a_bind_to_every_interface_allows_no_host() -> None:
    assert host_of_bind("0.0.0.0:80") == host_of_bind("[::]:80") == host_of_bind(":80") == []
    assert host_of_bind("[::1]:80") == ["[::1]"]
    assert host_of_bind("node.example:80") == ["node.example"]


def test_database_addresses() -> None:
    assert database_from_url("sqlite:////var/x.db")["NAME"] == "/var/x.db"
    postgres = database_from_url("postgres://me:p%40ss@db.example:5433/mh?sslmode=require")
    assert (postgres["USER"], postgres["PASSWORD"], postgres["HOST"], postgres["PORT"], postgres["NAME"]) == (
        "me",
        "p@ss",
        "db.example",
        "5433",
        "mh",
    )
    assert postgres["OPTIONS"] == POSTGRESQL_OPTIONS | {"sslmode": "require"}
    patient = database_from_url("postgres://db.example/mh?tcp_user_timeout=90000")
    assert patient["OPTIONS"] == POSTGRESQL_OPTIONS | {"tcp_user_timeout": "90000"}
    for wrong in ("mysql://x/y", "sqlite:///"):
        with pytest.raises(ImproperlyConfigured):
            database_from_url(wrong)


def test_the_secret_key_comes_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "secret_key"
    file.write_text("from the file\n")
    assert secret_key("", file) == "from the file"
    assert secret_key("given", file) == "given"


def test_the_newest_tini_is_the_highest_number(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.19.0", "0.18.1"):
        (tmp_path / f"tini-{version}").touch()
    assert newest_tini(tmp_path) == str(tmp_path / "tini-0.19.0")
    assert newest_tini(tmp_path / "none") == ""
