"""The parent's side of a call: start a child, give it the work, take one frame, end everything it started.

A child is a fresh interpreter (no fork of this process, which may have threads of jax). The configuration travels in a
memory file, so nothing waits for the child to read it; stdout, stderr and the result each have a pipe, read up to a
limit.
"""

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gemworks.errors import BackendError
from gemworks.tools.output import clean_text
from gemworks.tools.sandbox import means as _means
from gemworks.tools.sandbox.means import Means
from gemworks.tools.sandbox.policy import Policy

ROOT = str(Path(__file__).parents[3])
_BOOT = "import sys; sys.path.append(sys.argv[1]); from gemworks.tools.sandbox.child import main; main(*sys.argv[2:])"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/localtime")
_FOR_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/etc/services", "/etc/gai.conf")
_HEADER = 32 + 8  # nonce and length of a frame
_FRAME_EXTRA = 64  # {"value": ...} around the result
_WAKE_S = 0.1  # how soon a call hears that it was stopped
_WRITE_SEALS = 0x000F  # F_SEAL_SEAL, SHRINK, GROW, WRITE


class Code(NamedTuple):
    """A function's source: the text of its module, the module's name and file, and the function's name in it.

    `convert`: arguments and results are of types JSON does not have, and pydantic turns them in the child.
    """

    source: str
    function: str
    module: str = "tool"
    file: str = "<tool>"
    convert: bool = False

    @classmethod
    def of_text(cls, source: str, function: str) -> "Code":
        """A function in a text of its own."""
        return cls(source, function)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a call ended. `status` is ok, failed (the tool's own error), invalid (arguments the tool's types refuse),
    limit (one of the policy's), stopped (by whoever asked for it) or forged (no proper frame came); `error` says it in
    words."""

    status: str
    value: Any = None
    error: str = ""
    stdout: str = ""
    stderr: str = ""
    wall_s: float = 0.0


@dataclass(slots=True)
class _Reading:
    """What came through one pipe, up to its limit."""

    limit: int
    data: bytearray = field(default_factory=bytearray)
    is_over: bool = False

    def add(self, chunk: bytes) -> None:
        room = self.limit - len(self.data)
        self.is_over |= len(chunk) > room
        self.data += chunk[: max(room, 0)]


class Sandbox:
    """Runs functions under one policy. May be shared by threads: every call has a child of its own."""

    def __init__(self, policy: Policy | None = None, *, means: Means | None = None, interpreter: str | None = None):
        """`means` forces how, for tests; without it the strongest that this machine has, or BackendError."""
        self.policy = policy or Policy()
        self.means = means or _means.choose(self.policy, _means.abilities())
        self._interpreter = interpreter
        self._fixed = _Fixed.of(self.policy, self.means, interpreter)

    def call(
        self,
        code: Code,
        arguments: Mapping[str, Any],
        bound: Mapping[str, Any] | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> Outcome:
        """Call a function in a child. Setting `stop` kills it. BackendError where the sandbox cannot be set up: then
        nothing ran."""
        return self._run("call", code, {"arguments": dict(arguments), "bound": dict(bound or {})}, stop)

    def describe(self, code: Code, bound_names: Sequence[str] = ()) -> Outcome:
        """The declarations of a module's public functions, read in a child: its code never runs here."""
        return self._run("describe", code, {"bound_names": list(bound_names)})

    def command(self, program: list[str]) -> list[str]:
        """The command line that runs `program` (an absolute path and arguments) in the sandbox, for whoever starts it.

        Its three streams stay what they are. Wall time is not limited: whoever starts it ends it.
        """
        config = self._fixed.config | {"program": program, "parent": os.getpid()}
        if os.geteuid() == 0:
            config["uid"] = _means.unprivileged_uid()
        return [*self._fixed.prefix, "program", json.dumps(config)]

    def _run(self, job: str, code: Code, work: dict[str, Any], stop: threading.Event | None = None) -> Outcome:
        nonce = secrets.token_hex(16)
        config = self._fixed.config | work | code._asdict()
        config |= {"job": job, "nonce": nonce, "parent": os.getpid(), "uid": _means.unprivileged_uid()}
        config["modules"] = _sent_modules() if code.convert or job == "describe" else {}
        start = time.monotonic()
        result_in, result_out = os.pipe()
        try:
            with _memory_file(json.dumps(config).encode()) as stdin:
                process = subprocess.Popen(
                    [*self._fixed.prefix, "call", str(result_out)],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={},
                    cwd="/",
                    pass_fds=(result_out,),
                    start_new_session=True,
                )
            os.close(result_out)
            result_out = -1
            pipes, timed_out = self._collect(process, result_in, start + self.policy.wall_s, stop)
        finally:
            os.close(result_in)
            if result_out >= 0:
                os.close(result_out)
        if timed_out and stop is not None and stop.is_set():
            return Outcome(status="stopped", error="it was stopped", wall_s=time.monotonic() - start)
        return self._judge(process.returncode, pipes, nonce, timed_out, time.monotonic() - start)

    def _collect(
        self, process: subprocess.Popen[bytes], result: int, deadline: float, stop: threading.Event | None
    ) -> tuple[dict[str, _Reading], bool]:
        """Read until the frame is whole, the child has closed its end, the time is over or `stop` is set; then end it,
        always. Returns what came, and whether it was the time or `stop`."""
        policy = self.policy
        assert process.stdout is not None and process.stderr is not None
        readings = {name: _Reading(policy.output_bytes) for name in ("stdout", "stderr")}
        readings["result"] = _Reading(_HEADER + policy.result_bytes + _FRAME_EXTRA)
        timed_out = False
        try:
            with selectors.DefaultSelector() as selector:
                for name, fd in {"stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}.items():
                    selector.register(fd, selectors.EVENT_READ, name)
                selector.register(result, selectors.EVENT_READ, "result")
                while not timed_out and "result" in {key.data for key in selector.get_map().values()}:
                    timed_out = not _read_some(selector, readings, deadline, stop)
                    frame = readings["result"]
                    if frame.is_over or _is_whole(frame.data):
                        break
                # What the tool printed before its result is in the pipes by now.
                while not timed_out and selector.get_map() and _read_some(selector, readings, time.monotonic()):
                    pass
            if not timed_out and not _is_whole(readings["result"].data):
                _await_exit(process, deadline)  # its code says which limit it met
        finally:
            _end(process)
        return readings, timed_out

    def _judge(self, code: int, pipes: dict[str, _Reading], nonce: str, timed_out: bool, wall_s: float) -> Outcome:
        texts = {name: clean_text(pipes[name].data.decode("utf-8", "replace")) for name in ("stdout", "stderr")}
        ended: dict[str, Any] = texts | {"wall_s": wall_s}
        frame = bytes(pipes["result"].data)
        if timed_out:
            return Outcome(status="limit", error=f"it took longer than {self.policy.wall_s:g} s (wall_s)", **ended)
        if pipes["result"].is_over:
            most = f"{self.policy.result_bytes:,} bytes (result_bytes)"
            return Outcome(status="limit", error=f"its result is larger than {most}", **ended)
        if not frame:
            status, error = _meaning(code, self.policy)
            if self._failed_to_start(code, texts["stderr"]):
                raise BackendError(f"the sandbox ({self.means}) could not be set up: {texts['stderr'].strip()[-500:]}")
            return Outcome(status=status, error=error, **ended)
        answer = _opened(frame, nonce)
        if answer is None:
            error = (
                "what came back is not a result of this call; the tool, or something it ran, wrote to the result's pipe"
            )
            return Outcome(status="forged", error=error, **ended)
        if "refused" in answer:
            raise BackendError(f"the sandbox ({self.means}) could not be set up. {answer['refused']}")
        if "value" in answer:
            if len(json.dumps(answer["value"])) > self.policy.result_bytes:
                most = f"{self.policy.result_bytes:,} bytes (result_bytes)"
                return Outcome(status="limit", error=f"its result is larger than {most}", **ended)
            return Outcome(status="ok", value=answer["value"], **ended)
        if "invalid" in answer:
            return Outcome(status="invalid", error=clean_text(answer["invalid"]), **ended)
        where = f" (line {answer['line']})" if answer.get("line") else ""
        return Outcome(status="failed", error=clean_text(answer["failed"]) + where, **ended)

    def _failed_to_start(self, code: int, stderr: str) -> bool:
        return code != 0 and self.means.engine == "bubblewrap" and stderr.startswith("bwrap: ")


class _Fixed(NamedTuple):
    """What is the same for every call under one policy: the command line's beginning and the configuration's."""

    prefix: list[str]
    config: dict[str, Any]

    @classmethod
    def of(cls, policy: Policy, means: Means, interpreter: str | None) -> "_Fixed":
        python = os.path.realpath(interpreter or getattr(sys, "_base_executable", None) or sys.executable)
        packages = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
        mounts, links = _system_paths(python, policy.network)
        mounts += [(os.path.realpath(path), path) for path in packages] if policy.packages else []
        mounts += policy.mounts()
        mounts = [m for m in dict.fromkeys(mounts) if not _is_inside(m, mounts)]
        config: dict[str, Any] = {name: getattr(policy, name) for name in _CHILD_LIMITS}
        config |= {"engine": means.engine, "landlock": means.landlock, "seccomp": means.seccomp, "root": ROOT}
        config |= {"mounts": mounts, "links": links, "packages": packages if policy.packages else []}
        config |= {"program": None, "uid": None, "waiting_tasks": _waiting_tasks(means.engine)}
        prefix = [python, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, ROOT]
        if means.engine == "bubblewrap":
            prefix = _bwrap(policy, mounts, links) + prefix
        return cls(prefix, config)


_CHILD_LIMITS = (
    *("network", "children", "tasks", "memory_bytes", "tmp_bytes", "tmp_files", "file_bytes", "cpu_s", "open_files"),
)


def _system_paths(python: str, network: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(what, where) of the interpreter and the libraries, and (pointed to, path) of /lib -> usr/lib and its like."""
    mounts, links = [], []
    home = os.path.dirname(os.path.dirname(python))
    for path in (*_SYSTEM, *(_FOR_NETWORK if network else ()), home):
        if os.path.islink(path) and path.count("/") == 1:
            links.append((os.readlink(path), path))
        elif os.path.exists(path):
            mounts.append((os.path.realpath(path), path))
    return mounts, links


def _is_inside(one: tuple[str, str], mounts: list[tuple[str, str]]) -> bool:
    """Whether a mount shows what a mount above it already shows at the same place."""
    return any(
        one != other and one[0] == one[1] and other[0] == other[1] and one[1].startswith(other[1].rstrip("/") + "/")
        for other in mounts
    )


def _bwrap(policy: Policy, mounts: list[tuple[str, str]], links: list[tuple[str, str]]) -> list[str]:
    command = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    command += [] if policy.network else ["--unshare-net"]
    command += ["--die-with-parent", "--clearenv", "--cap-drop", "ALL"]
    # For the limit of /tmp, and for becoming another user; all are dropped before the tool's code runs.
    command += ["--cap-add", "CAP_SYS_ADMIN"]
    if os.geteuid() == 0:
        for name in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            command += ["--cap-add", name]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for pointed, path in links:
        command += ["--symlink", pointed, path]
    package = [(f"{ROOT}/gemworks/{name}",) * 2 for name in ("__init__.py", "errors.py", "tools")]
    shown = mounts + package
    parents = {str(p) for _, target in shown for p in Path(target).parents if str(p) != "/"} | {"/dev"}
    if policy.tmp_bytes:  # its limits are set from inside
        command += ["--perms", "1777", "--size", str(policy.tmp_bytes), "--tmpfs", "/tmp"]
    for path in sorted(parents - {"/tmp"}):  # bwrap makes them for its own user only
        command += ["--perms", "0755", "--dir", path]
    for source, target in shown:
        command += ["--ro-bind", source, target]
    for name in ("null", "zero", "full", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    return [*command, "--remount-ro", "/", "--chdir", "/", "--"]


def _waiting_tasks(engine: str) -> int:
    """Processes that count as the tool's user's and are not the tool's: RLIMIT_NPROC has to leave room for them."""
    if engine == "namespaces":
        return 1 if os.geteuid() == 0 else 2
    if os.geteuid() == 0:
        return 0
    return 1 if engine == "bubblewrap" else _tasks_of_user()


def _tasks_of_user() -> int:
    """Threads this user has now. Without a user namespace the limit counts them, so it can only be held about."""
    count, uid = 0, os.getuid()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if folder.stat().st_uid == uid:
                    count += len(os.listdir(folder / "task"))
            except OSError:  # it has ended
                continue
    return count


class _memory_file:
    """A file without a name that holds `data`, sealed, read from its beginning."""

    def __init__(self, data: bytes):
        import fcntl

        self.fd = os.memfd_create("gemworks-call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(self.fd), "wb") as file:
            file.write(data)
        os.lseek(self.fd, 0, os.SEEK_SET)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _WRITE_SEALS)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_exc: object) -> None:
        os.close(self.fd)


def _sent_modules() -> dict[str, str]:
    """Modules of ours that the child needs, as source: its file system does not show this package."""
    folder = Path(__file__).parents[1]
    return {"gemworks.tools.declare": (folder / "declare.py").read_text(encoding="utf-8")}


def _read_some(
    selector: selectors.BaseSelector,
    readings: dict[str, _Reading],
    deadline: float,
    stop: threading.Event | None = None,
) -> bool:
    """Read what is there; False where nothing came by the deadline, or before `stop` was set."""
    while True:
        left = max(0.0, deadline - time.monotonic())
        events = selector.select(left if stop is None else min(left, _WAKE_S))
        if events or left == 0.0 or (stop is not None and stop.is_set()):
            break
    for key, _ in events:
        chunk = os.read(key.fd, 1 << 16)
        if chunk:
            readings[key.data].add(chunk)
        else:
            selector.unregister(key.fd)
    return bool(events)


def _is_whole(frame: bytearray) -> bool:
    if len(frame) < _HEADER:
        return False
    try:
        return len(frame) >= _HEADER + int(frame[32:_HEADER], 16)
    except ValueError:
        return True  # no frame at all; more of it would not help


def _opened(frame: bytes, nonce: str) -> dict[str, Any] | None:
    """The answer in a frame, or None where it is not one of this call."""
    if len(frame) < _HEADER or not secrets.compare_digest(frame[:32], nonce.encode()):
        return None
    try:
        answer = json.loads(frame[_HEADER : _HEADER + int(frame[32:_HEADER], 16)])
    except (ValueError, RecursionError):
        return None
    keys = {"value": object, "refused": str, "invalid": str, "failed": str}
    known = [name for name, kind in keys.items() if name in answer and isinstance(answer[name], kind)]
    return answer if isinstance(answer, dict) and len(known) == 1 else None


def _await_exit(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(0.0, min(2.0, deadline - time.monotonic())))
    except subprocess.TimeoutExpired:
        return


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and its process group. What left the group is in the PID namespace, which ends with the child."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _meaning(code: int, policy: Policy) -> tuple[str, str]:
    """What an exit without a result says. 128 + N is signal N of the tool, told on by the processes between."""
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number == signal.SIGXCPU or (number == signal.SIGKILL and policy.cpu_s <= 1):
        return "limit", f"it used more than {policy.cpu_s} s of processor time (cpu_s)"
    if number == signal.SIGXFSZ:
        return "limit", f"it wrote a file larger than {policy.file_bytes:,} bytes (file_bytes)"
    if number:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if number == signal.SIGSYS:
            return "limit", "it made system calls of another architecture (SIGSYS)"
        if number == signal.SIGKILL:
            return "limit", "it was killed: out of memory, or past its processor time with SIGXCPU ignored"
        return "failed", f"it was ended by {name} before it gave a result"
    return "failed", f"it ended with exit code {code} before it gave a result"
