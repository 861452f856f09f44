"""runmh: the supervisor of one service: parent of its init, keeper of its log, witness of its end.

It outlives the worker that launched it and knows neither CRIU's protocol nor the database. What it knows it
writes to RUN_DIR/services/ID/state.json; that it lives shows in the lock beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from worker import cgroups, namespaces
from worker.durable import write_json
from worker.locks import take
from worker.process import Process, children
from worker.runmh import scope
from worker.runmh.launch import become_service, binds_of
from worker.runmh.log import RotatedLog
from worker.runmh.order import Order
from worker.runmh.stranger import Stranger
from worker.runmh.waiting import receive

# The number under which CRIU finds the write end of the log pipe (its `inherit_fd`).
LOG_FD = 200
_MAIN_APPEARS_WITHIN = 2.0


class Supervisor:
    """One service from its start or restore, or from the death of its last supervisor, to its end."""

    def __init__(self, arguments: Order) -> None:
        self.arguments = arguments
        self.folder = f"{arguments.run_dir}/services/{arguments.service}"
        self.log = RotatedLog(f"{arguments.log_dir}/{arguments.service}.log")
        self.pipe, self.pipe_write = arguments.pipe_fd, -1
        if self.pipe < 0:
            self.pipe, self.pipe_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.pipe, False)
        self.init = 0
        self.stranger: Stranger | None = None
        self.swrk = 0
        self.status: int | None = None
        self.state: dict[str, Any] = {
            "service": arguments.service,
            "phase": "starting",
            "runmh": Process.of(os.getpid()),
            "pipe": os.fstat(self.pipe).st_ino,
            "image": arguments.image,
            "groups": {},
            "began": time.time(),
        }
        self.wakeup, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._pass_on)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _pass_on(self, number: int, _frame: object) -> None:
        if self.swrk:
            # With the helpers that it may have forked: one that hangs would hold the job's lock for ever.
            try:
                os.killpg(self.swrk, signal.SIGKILL)
            except ProcessLookupError:  # it is not yet in a session of its own
                os.kill(self.swrk, signal.SIGKILL)
            return
        self.state["told"] = True
        if self.stranger is not None and self.stranger.descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.stranger.descriptor, number)
        elif self.init and self.status is None:
            os.kill(self.init, number)

    def start(self, spec: dict[str, Any]) -> dict[str, Any] | None:
        """Start the service.

        Returns:
            None, or why it could not be started: code, message, remedy.
        """
        paths = self.arguments
        # A mount below a /tmp that is covered could not be dumped.
        covered = (namespaces.TMP,) if (spec.get("privileges") or {}).get("private_tmp") else ()
        mounts = namespaces.host_mounts(skip=(f"{paths.state_dir}/images", paths.run_dir, *covered))
        binds = [(target, source) for source, target, _ in binds_of(spec)]
        self.state["mounts"] = [(point, point) for point in mounts] + binds
        limits = spec.get("limits") or {}
        if refusal := self._make_groups(limits):
            return refusal
        hear, complaint = os.pipe2(os.O_CLOEXEC)
        awaited, go = os.pipe2(os.O_CLOEXEC)
        namespaces.unshare(namespaces.CLONE_NEWPID)
        self.init = os.fork()
        if self.init == 0:
            os.close(go)
            self._forget_signals()
            root = f"{paths.state_dir}/root"
            become_service(spec, mounts, root, paths.tini, self.pipe_write, complaint, awaited)
        os.close(complaint)
        os.close(awaited)
        # Nothing of the service runs before it is known what does, should this process be killed.
        self.write_state("starting", init=Process.of(self.init))
        refusal = self._place(self.init, limits)
        if not refusal:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
                os.write(go, b"\n")
        os.close(go)
        with os.fdopen(hear, "rb") as file:
            report = file.read()
        if report:
            refusal = json.loads(report)
        if refusal:
            os.waitpid(self.init, 0)
        return refusal

    def _make_groups(self, limits: dict[str, int], *, room_for_criu: bool = False) -> dict[str, Any] | None:
        """Make the service's control groups; return why that could not be done."""
        try:
            self.state["groups"] = cgroups.put(self.arguments.service, limits, room_for_criu=room_for_criu)
        except OSError as error:
            return _limit_refused(error)
        return None

    def _narrow(self) -> None:
        """Take back the room that CRIU had, if that was not done."""
        if limits := self.state.pop("widened", None):
            cgroups.narrow(self.state["groups"], limits)

    def _place(
        self, child: int, limits: dict[str, int], *, room_for_criu: bool = False
    ) -> dict[str, Any] | None:
        """Put this process and its only child where the service shall live; return why that cannot be.

        systemd's scope first: it takes both, and the groups of the service's limits may lie elsewhere.
        """
        order = self.arguments
        if order.unit:
            try:
                self.state["scope"] = scope.enter(
                    order.service, [os.getpid(), child], order.unit, order.title
                )
            except scope.NoScope as reason:
                self.state["no_scope"] = str(reason)
        try:
            self.state["groups"] = cgroups.put(order.service, limits, child, room_for_criu=room_for_criu)
        except OSError as error:
            return _limit_refused(error)
        return None

    def restore(self) -> dict[str, Any] | None:
        """Run CRIU as a child, its protocol being spoken by the worker at the other end of `rpc_fd`.

        CRIU restores the service's init as its own sibling (`rst_sibling`), so as a child of this process.

        Returns:
            None, or that nothing was restored; the worker knows why.
        """
        self.state["mounts"] = json.loads(self.arguments.mounts)
        limits = json.loads(self.arguments.limits)
        if refusal := self._make_groups(limits, room_for_criu=True):
            return refusal
        # Until CRIU has ended its room is there, whoever takes it back.
        self.write_state("restoring", widened=limits)
        self.swrk = os.fork()
        if self.swrk == 0:
            self._become_criu()
        for descriptor in (self.arguments.rpc_fd, self.arguments.lock_fd, self.arguments.probe_fd):
            if descriptor >= 0:
                os.close(descriptor)
        # Meanwhile CRIU gets ready; the worker lets it fork nothing before this is said.
        if refusal := self._place(self.swrk, limits, room_for_criu=True):
            self.swrk = 0
            self.end_children()
            return refusal
        with contextlib.suppress(BrokenPipeError):
            os.write(self.arguments.ready_fd, b'{"placed": true}\n')
        _, status = os.waitpid(self.swrk, 0)
        self.swrk = 0
        restored = children(os.getpid())
        if status == 0 and restored:
            self.init = restored[0]
            self._narrow()
            return None
        self.end_children()
        return {
            "code": "restore_failed",
            "message": "CRIU restored nothing.",
            "remedy": "Look at CRIU's log.",
        }

    def adopt(self) -> dict[str, Any] | None:
        """Go on where a supervisor was killed: with its state, its pipe, and an init that is not our child.

        Returns:
            None, or that there is nothing to go on with.
        """
        with open(f"{self.folder}/state.json", encoding="utf-8") as file:
            left = json.load(file)
        if left["phase"] not in {"starting", "running"} or not left.get("init"):
            return {
                "code": "nothing_to_adopt",
                "message": "The service has no process that could be taken over.",
                "remedy": "Start it, or restore an image of it.",
            }
        self.state = left | {"runmh": self.state["runmh"], "adopted": True}
        self.stranger = Stranger(Process(*left["init"]))
        self.init = left["init"][0]
        self._narrow()
        if self.arguments.unit:
            self._follow()
        return None

    def _follow(self) -> None:
        """Go into the scope of a service that runs, or into one of its name if it has none."""
        order = self.arguments
        self.state.pop("no_scope", None)
        try:
            self.state["scope"] = scope.follow(order.service, order.unit)
        except scope.NoScope as reason:
            self.state["no_scope"] = str(reason)

    @staticmethod
    def end_children() -> None:
        """Kill what was started or restored: nothing may run that nobody watches."""
        for pid in children(os.getpid()):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _become_criu(self) -> NoReturn:
        paths = self.arguments
        try:
            self._forget_signals()
            os.setsid()
            namespaces.unshare(namespaces.CLONE_NEWNS)
            namespaces.make_private()
            namespaces.bind("/", f"{paths.state_dir}/root")
            if paths.probe_fd >= 0:
                namespaces.keep_probe(paths.probe_fd)
            os.dup2(self.pipe_write, LOG_FD)
            for descriptor in (paths.rpc_fd, paths.lock_fd):
                if descriptor >= 0:
                    os.set_inheritable(descriptor, True)
            os.execv(paths.criu, [paths.criu, "swrk", str(paths.rpc_fd)])
        except BaseException as error:
            sys.stderr.write(f"runmh: cannot start CRIU: {error}\n")
            sys.stderr.flush()
        os._exit(126)

    @staticmethod
    def _forget_signals() -> None:
        """Go back to the defaults of signal(7): what is ignored, such as SIGPIPE by Python, survives exec."""
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def write_state(self, phase: str, **more: Any) -> None:
        """Say how the service is, to whoever reads its state.json."""
        self.state.update(more, phase=phase)
        write_json(f"{self.folder}/state.json", self.state, durable=False)

    def find_main(self) -> None:
        """Note the PIDs of init and of the service's own process, as soon as init has made it."""
        if self.state.get("main"):
            return
        deadline = time.monotonic() + _MAIN_APPEARS_WITHIN
        main = None
        while main is None and time.monotonic() < deadline and not self._ended():
            main = next(map(Process.of, children(self.init)), None)
            if main is None:
                time.sleep(0.001)
        # One that has ended already keeps its PID here, with a start time that no process has.
        init = self.state.get("init") or Process.of(self.init) or Process(self.init, 0)
        self.state.update(init=init, main=main)

    def supervise(self) -> None:
        """Keep the log until the service has ended, then say how it ended."""
        poll = select.poll()
        poll.register(self.pipe, select.POLLIN)
        poll.register(self.wakeup, select.POLLIN)
        if self.stranger is not None and self.stranger.descriptor is not None:
            poll.register(self.stranger.descriptor, select.POLLIN)
        while not self._ended():
            for descriptor, _ in poll.poll():
                if descriptor == self.wakeup:
                    os.read(self.wakeup, 512)
                elif descriptor == self.pipe and not self._copy_output():
                    poll.unregister(self.pipe)
        while self._copy_output():
            pass
        groups = self.state.get("groups", {})
        self.state["memory"] = cgroups.killed_for_memory(groups)
        cgroups.remove(groups.values())
        code = number = None
        if self.status is not None:
            code = os.waitstatus_to_exitcode(self.status)
            # tini reports a service that was killed as 128 + signal, as a shell does.
            number = -code if code < 0 else code - 128 if 128 < code < 128 + signal.NSIG else None
            self.state["whole"] = code < 0
        self.write_state(
            "ended", exit_code=code if number is None else None, exit_signal=number, ended=time.time()
        )

    def _ended(self) -> bool:
        if self.stranger is not None:
            if not self.stranger.ended():
                return False
            self.status = self.stranger.status()
            return True
        if self.status is None:
            pid, status = os.waitpid(self.init, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def _copy_output(self) -> bool:
        """Copy what waits in the pipe to the log; False if there is nothing, or never will be."""
        try:
            data = os.read(self.pipe, 65536)
        except BlockingIOError:
            return False
        self.log.write(data)
        return bool(data)


def _limit_refused(error: OSError) -> dict[str, Any]:
    return {
        "code": "limit_refused",
        "message": f"The service's limits cannot be set: {error.strerror or error}.",
        "remedy": "See `mhctl check` for what this host can limit; ask for less, or for more.",
    }


def _bring_up(supervisor: Supervisor) -> dict[str, Any] | None:
    """Start or restore the service and write how that went; return why it went wrong, if it did."""
    order = supervisor.arguments
    if order.action == "start":
        with open(f"{order.state_dir}/services/{order.service}/spec.json", encoding="utf-8") as file:
            error = supervisor.start(json.load(file))
    elif order.action == "restore":
        error = supervisor.restore()
    elif error := supervisor.adopt():
        # What the last supervisor said of the service is left as it is.
        supervisor.state.update(phase="failed", error=error)
        return error
    if supervisor.pipe_write >= 0:
        os.close(supervisor.pipe_write)
    if error:
        cgroups.remove(supervisor.state["groups"].values())
        supervisor.write_state("failed", error=error)
    else:
        supervisor.find_main()
        supervisor.write_state("running")
    return error


def main(words: list[str] | None = None) -> None:
    """Run the command line `words` (default: the process's own) in a process of its own."""
    words = sys.argv[1:] if words is None else words
    waits = len(words) == 1 and words[0].startswith("--order-fd=")
    arguments = None if waits else Order(words)
    if os.geteuid() != 0:
        raise SystemExit(
            "runmh: Only root may start a service, which gets namespaces of its own.\n"
            "  remedy: Leave it to miehistod (sudo miehistod), or use sudo."
        )
    if os.fork():
        os._exit(0)
    if arguments is None:
        arguments = Order(receive(int(words[0].partition("=")[2])))
    os.umask(0o022)
    folder = f"{arguments.run_dir}/services/{arguments.service}"
    lock = take(f"{folder}/lock")
    if lock is None:
        refusal = {
            "code": "service_running",
            "message": "Another runmh holds this service.",
            "remedy": "Stop the service, or see who runs it (ps -ef | grep runmh).",
        }
        os.write(arguments.ready_fd, json.dumps({"phase": "failed", "error": refusal}).encode() + b"\n")
        os._exit(1)
    supervisor = Supervisor(arguments)
    try:
        error = _bring_up(supervisor)
    except BaseException:
        supervisor.end_children()
        raise
    # A worker that has died meanwhile finds the same in state.json, by the next one's eyes.
    with contextlib.suppress(BrokenPipeError):
        os.write(arguments.ready_fd, json.dumps(supervisor.state).encode() + b"\n")
    os.close(arguments.ready_fd)
    if not error:
        supervisor.supervise()
    # Nothing is left to be said; skipping the interpreter's tear-down frees the lock a little sooner.
    os._exit(0)


if __name__ == "__main__":
    main()
