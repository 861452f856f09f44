"""What root lets services be: a file of root's that the worker reads before each start and each restore.

The site may have been taken over and may write any row; it can write neither this file nor the worker's
environment. Knows no rows; docs/policy.md describes every rule.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from worker import places
from worker.errors import JobFailed, describe
from worker.places import on_host
from worker.runmh.launch import DEFAULT_PATH, Account, Refused, binds_of
from worker.runmh.privileges import OF_ROOT, name_of

DEFAULT = Path("/etc/miehisto/policy.toml")
_SIZE = re.compile(r"(\d{1,12})([KMGT]?)\Z")
_LARGE = 1 << 20  # bytes; a policy is a page of text
# What a service may set where root names programs and no variables. Every linker, shell and interpreter has
# variables of its own that load code (LD_PRELOAD, BASH_ENV, PATH, HOME): nobody can list them all.
_HARMLESS = ("LANG", "LC_*", "TZ")
# A bind over one of these would give a program that is allowed another's code.
_SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr", "/opt/miehisto")


@dataclass(frozen=True)
class Policy:
    """The rules; None stands for one that is not set.

    Attributes:
        file: where the rules come from; empty if there is no file.
        root: whether a service may run as root.
        users: names or numbers of those that services may run as.
        groups: names or numbers of groups that services may be given besides their user's own.
        programs: files, or folders of files, that services may run.
        environment: names of variables that services may set; a * at the end stands for anything.
        directories: where services may work, and what may be bound into them.
        capabilities: what services may keep beyond the default.
        new_privileges: whether a service may be let gain privileges by running a program (setuid).
        services: how many may have a process at once.
        memory, tasks, open_files: the most that one service may have, in bytes, processes, descriptors.
        pool: bytes that all images together may take.
    """

    file: str = ""
    root: bool = True
    users: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    programs: tuple[str, ...] | None = None
    environment: tuple[str, ...] | None = None
    directories: tuple[str, ...] | None = None
    capabilities: tuple[str, ...] | None = None
    new_privileges: bool = True
    services: int | None = None
    memory: int | None = None
    tasks: int | None = None
    open_files: int | None = None
    pool: int | None = None

    def rules(self) -> dict[str, Any]:
        """Return the rules that restrict anything, by their names in the file."""
        unset = Policy()
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "file"}
        return {name: value for name, value in said.items() if value != getattr(unset, name)}

    def applied(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return the spec as it may be run: with the command's path, and within the limits.

        Args:
            spec: what a row or a manifest says: argv, user, group, cwd, env, binds, privileges, limits.

        Raises:
            JobFailed: a rule forbids it, which is named.
        """
        self._check_account(spec)
        self._check_environment(spec.get("env") or {})
        self._check_directories(spec)
        self._check_privileges(spec.get("privileges") or {})
        limits = self._limits(spec.get("limits") or {})
        return {**spec, "argv": self._command(spec), "limits": limits}

    def check_image(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Check an image's manifest as a spec is; return its spec with the limits of now.

        Raises:
            JobFailed: a rule forbids it.
        """
        spec: dict[str, Any] = facts["spec"]
        if self.open_files is not None and "open_files" not in (spec.get("limits") or {}):
            # The memory says what its processes may open, which nobody can lower from outside.
            self._refuse("open_files", "was dumped without such a limit")
        if self.directories is not None:
            asked = {(target, source) for source, target, _ in binds_of(spec)}
            for target, source in facts["mounts"]:
                if target != source and (target, source) not in asked:
                    self._refuse("directories", f"shows {source} at {target} without having asked for it")
        carried = [*(facts.get("carried") or []), *(facts.get("shared_memory") or [])]
        self.check_data(
            place
            for place in (on_host(facts["mounts"], path) for path in carried)
            if not places.is_within(os.path.realpath(place), ("/dev/shm",))  # noqa: S108
        )
        return self.applied(spec)

    def check_data(self, data: Iterable[str]) -> None:
        """Check where on the host a service has its data.

        Raises:
            JobFailed: elsewhere than it may work.
        """
        if self.directories is None:
            return
        allowed = tuple(os.path.realpath(entry) for entry in self.directories)
        for path in data:
            if not places.is_within(os.path.realpath(path), allowed):
                self._refuse("directories", f"has its data in {path}")

    def check_number(self, living: int) -> None:
        """Check that one more service may live beside so many.

        Raises:
            JobFailed: that would be too many.
        """
        if self.services is not None and living >= self.services:
            self._refuse("services", f"would be one more than the {self.services} that may run at once")

    def check_process(
        self, accounts: Iterable[tuple[int, int]], capabilities: Iterable[int], *, may_gain: bool
    ) -> None:
        """Check what a process is that an image holds.

        Args:
            accounts: (uid, gid) of each user and group that it has or could take back.
            capabilities: the numbers of those that it has or could get.
            may_gain: whether a setuid program gives it rights.

        Raises:
            JobFailed: no such process may run here.
        """
        for uid, gid in sorted(set(accounts)):
            self._check_account({"user": str(uid), "group": str(gid)})
        if self.capabilities is not None and "ALL" not in self.capabilities:
            for number in sorted(set(capabilities) - OF_ROOT):
                name = name_of(number)
                if name not in self.capabilities:
                    self._refuse("capabilities", f"was dumped with CAP_{name}")
        if may_gain and not self.new_privileges:
            self._refuse("new_privileges", "was dumped with the right to gain privileges")

    @property
    def restricts_insides(self) -> bool:
        """Whether it matters what the processes in an image are, beyond what its spec says."""
        return self.restricts_accounts or self.capabilities is not None or not self.new_privileges

    @property
    def restricts_accounts(self) -> bool:
        """Whether it matters who a service runs as."""
        return not self.root or self.users is not None or self.groups is not None

    def _refuse(self, rule: str, what: str) -> NoReturn:
        raise JobFailed(
            "policy_refused",
            f"This node's policy forbids it: the service {what} (rule {rule!r} in {self.file}).",
            f"Change the service, or let root change the rule in {self.file}.",
        )

    def _check_account(self, spec: Mapping[str, Any]) -> None:
        if not self.restricts_accounts:
            return
        account = _account(str(spec.get("user", "")), str(spec.get("group", "")))
        if not self.root and account.uid == 0:
            self._refuse("root", "would run as root")
        if self.users is not None and not {account.name, str(account.uid)} & set(self.users):
            self._refuse("users", f"would run as {account.name}")
        own = _account(str(account.uid), "")
        allowed = set(self.groups or ())
        if account.gid not in (own.gid, *own.groups) and not allowed & {
            str(account.gid),
            places.group_name(account.gid),
        }:
            self._refuse(
                "groups", f"would run in the group {places.group_name(account.gid)}, not its user's own"
            )

    def _check_environment(self, variables: Iterable[str]) -> None:
        if self.environment is None:
            return
        for name in variables:
            if not any(_is_meant(name, entry) for entry in self.environment):
                allowed = ", ".join(self.environment) or "no variable"
                self._refuse("environment", f"sets the variable {name!r} and may set {allowed}")

    def _command(self, spec: dict[str, Any]) -> list[str]:
        """Return the arguments, the first being a path, which nobody but root can make lead elsewhere."""
        argv: list[str] = list(spec["argv"])
        if self.programs is None:
            return argv
        variables: Mapping[str, str] = spec.get("env") or {}
        allowed = tuple(os.path.realpath(entry) for entry in self.programs)
        for _, target, _ in binds_of(spec):
            # Links of the host would lead the bind elsewhere than it says.
            for place in {target, os.path.realpath(target)}:
                if is_crossed(place, (*_SYSTEM, *allowed)):
                    self._refuse("programs", f"would have something bound over {place}")
        found = _find(argv[0], variables.get("PATH", DEFAULT_PATH), spec.get("cwd") or "/")
        if found is None:
            return argv  # which is said where it is tried
        try:
            real, steps = places.follow(found)
        except OSError as error:
            self._refuse("programs", f"would run {describe(error)}")
        if not places.is_within(real, allowed):
            self._refuse("programs", f"would run {real}")
        outside = [step for step in steps if not places.is_within(step.folder, allowed)]
        for folder, who in places.changers(outside):
            self._refuse("programs", f"would run {found}, and {who} can change {folder}")
        return argv if "/" in argv[0] else [found, *argv[1:]]

    def _check_directories(self, spec: dict[str, Any]) -> None:
        if self.directories is None:
            return
        allowed = tuple(os.path.realpath(entry) for entry in self.directories)
        folder = os.path.realpath(spec.get("cwd") or "/")
        if folder != "/" and not places.is_within(folder, allowed):
            self._refuse("directories", f"would work in {folder}")
        binds = [(target, source) for source, target, _ in binds_of(spec)]
        data = [*(spec.get("data") or []), *(spec.get("carry") or [])]
        self.check_data([on_host(binds, path) for path in data])
        for source, _, _ in binds_of(spec):
            try:
                real, steps = places.follow(source)
            except OSError as error:
                self._refuse("directories", f"would be shown {describe(error)}")
            if not places.is_within(real, allowed):
                self._refuse("directories", f"would be shown {real}")
            for changed, who in places.changers(steps):
                self._refuse("directories", f"would be shown {source}, and {who} can change {changed}")

    def _check_privileges(self, asked: Mapping[str, Any]) -> None:
        if self.capabilities is not None:
            for name in asked.get("cap_add", []):
                if not {name, "ALL"} & set(self.capabilities):
                    self._refuse("capabilities", f"would keep CAP_{name}")
        if not self.new_privileges and asked.get("new_privileges"):
            self._refuse("new_privileges", "could gain privileges by running a program")

    def _limits(self, asked: Mapping[str, int]) -> dict[str, int]:
        """Return the limits that are asked for, and the policy's own where none is."""
        limits = dict(asked)
        for name in ("memory", "tasks", "open_files"):
            most = getattr(self, name)
            if most is None:
                continue
            if limits.get(name, most) > most:
                self._refuse(name, f"asks for {limits[name]}, more than {most}")
            limits[name] = limits.get(name, most)
        return limits


def is_crossed(place: str, others: Sequence[str]) -> bool:
    """Tell whether `place` lies in one of the others, or one of them in it."""
    return places.is_within(place, tuple(others)) or any(
        places.is_within(other, (place,)) for other in others
    )


def _is_meant(name: str, entry: str) -> bool:
    return name.startswith(entry[:-1]) if entry.endswith("*") else name == entry


def _find(word: str, path: str, cwd: str) -> str | None:
    """Return the absolute path of what execvp(3) would run; None if there is nothing."""
    tried = [word] if "/" in word else [f"{folder or '.'}/{word}" for folder in path.split(":")]
    full = (os.path.join(cwd, name) for name in tried)
    return next((name for name in full if os.path.isfile(name) and os.access(name, os.X_OK)), None)


def _account(user: str, group: str) -> Account:
    try:
        return Account(user, group)
    except Refused as refusal:
        report = refusal.report
        raise JobFailed(report["code"], report["message"], report["remedy"]) from None


def in_force(environ: Mapping[str, str] = os.environ) -> Policy:
    """Read the policy of this node: the file that MIEHISTO_POLICY names, else the default one if it is there.

    Raises:
        JobFailed: there is one that cannot be trusted or understood; nothing may run then.
    """
    named = environ.get("MIEHISTO_POLICY") or ""
    path = Path(named or DEFAULT)
    if not named and not path.exists() and not path.is_symlink():
        return Policy()
    return read(path)


def read(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        JobFailed: it is missing, somebody but root could change it, or it says what is not understood.
    """
    try:
        for changed, who in places.changers_of_file(str(path.absolute())):
            remedy = f"Let root own {changed}, and nobody else write to it."
            _unreadable(path, f"{who} can change {changed}", remedy)
        with path.open("rb") as file:
            text = file.read(_LARGE + 1)
    except OSError as error:
        _unreadable(path, describe(error), "Restore it, or take MIEHISTO_POLICY back.")
    if len(text) > _LARGE:
        _unreadable(path, "it is larger than 1 MiB")
    try:
        said = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        _unreadable(path, str(error).rstrip("."))
    unknown = sorted(set(said) - set(_READERS))
    if unknown:
        _unreadable(path, f"there is no rule {unknown[0]!r}")
    rules: dict[str, Any] = {}
    for name, value in said.items():
        try:
            rules[name] = _READERS[name](value)
        except ValueError as error:
            _unreadable(path, f"the rule {name!r} {error}")
    if "programs" in rules:
        rules.setdefault("environment", _HARMLESS)
    return Policy(file=str(path), **rules)


def _unreadable(path: Path, why: str, remedy: str = "Mend it; docs/policy.md has every rule.") -> NoReturn:
    raise JobFailed(
        "policy_unreadable", f"This node's policy, {path}, cannot be relied on: {why}.", remedy
    ) from None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise ValueError("must be a whole number that is not negative")
    return value


def _size(value: object) -> int:
    if isinstance(value, str) and (found := _SIZE.match(value)):
        return int(found[1]) << 10 * " KMGT".index(found[2] or " ")
    if isinstance(value, str):
        raise ValueError('must be a size such as "512M" or "20G"')
    return _count(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _variables(value: object) -> tuple[str, ...]:
    found = _names(value)
    if any("=" in item or "*" in item[:-1] for item in found):
        raise ValueError("must be a list of names of variables, with a * at the end if at all")
    return found


def _paths(value: object) -> tuple[str, ...]:
    found = _names(value)
    if not all(item.startswith("/") for item in found):
        raise ValueError("must be a list of absolute paths")
    return found


def _capabilities(value: object) -> tuple[str, ...]:
    return tuple(name.upper().removeprefix("CAP_") for name in _names(value))


_READERS: dict[str, Callable[[object], object]] = {
    "root": _flag,
    "users": _names,
    "groups": _names,
    "programs": _paths,
    "environment": _variables,
    "directories": _paths,
    "capabilities": _capabilities,
    "new_privileges": _flag,
    "services": _count,
    "memory": _size,
    "tasks": _count,
    "open_files": _count,
    "pool": _size,
}
