"""What a fresh interpreter does before it is a tool's: take everything away from itself that the policy does not give.

Started by runner.py as `python -I -S -B -c ...`, never forked from a process that has threads. The steps, by engine:

    namespaces    leave all namespaces; fork (1: init of the new PID namespace); own root; fork (2: the tool)
    bubblewrap    bwrap has done that; only /tmp is mounted anew, with a limit of its own
    landlock      no namespaces; without a filter for fork there would be descendants nobody can find, so none may be

then for all: an unprivileged user, limits, no capabilities, no new privileges, Landlock, seccomp. When the init process
ends, the kernel kills what is left in its PID namespace, daemons too. Init ends with its parent, and that one with
ours.

Only modules that load fast are imported here: this runs before every call.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from typing import Any

from gemworks.tools.sandbox import landlock, linux, mounts, seccomp, tool_process

_RESULT_FD = 3


class _SetUp:
    """The step being taken, for the message where it is refused."""

    def __init__(self):
        self.step = "start"


def main(job: str, argument: str) -> None:
    """Set up, then become what `job` says; never returns.

    "call": the configuration is on stdin, `argument` is the descriptor for the result.
    "program": `argument` is the configuration; stdin, stdout and stderr stay what they are.
    """
    calls = job == "call"
    if calls:
        with os.fdopen(0, "rb", closefd=False) as stream:
            config = json.loads(stream.read())
    else:
        config = json.loads(argument)
    setup = _SetUp()
    try:
        _keep_only(int(argument) if calls else None)
        _become_a_tool(config, setup)
        if not calls:
            setup.step = config["program"][0]
            os.execve(config["program"][0], config["program"], {})
    except Exception as error:  # whatever it is, it is told: this process has no other voice
        why = f"{setup.step}: {error}"
        if calls:
            tool_process.send(_RESULT_FD, config["nonce"], tool_process.encoded({"refused": why}))
        else:
            os.write(2, f"the sandbox could not be set up: {why}\n".encode())
        os._exit(1)
    sys.path[:] = [path for path in sys.path if path != config["root"]] + config["packages"]
    tool_process.run(config, _RESULT_FD)


def _keep_only(result_fd: int | None) -> None:
    """Close every descriptor but the first three and the result's. For a call stdin becomes empty."""
    if result_fd is None:
        os.closerange(_RESULT_FD, os.sysconf("SC_OPEN_MAX"))
        return
    if result_fd != _RESULT_FD:
        os.dup2(result_fd, _RESULT_FD)
    os.closerange(_RESULT_FD + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)


def _become_a_tool(config: dict[str, Any], setup: _SetUp) -> None:
    setup.step = "parent"
    if config["engine"] != "bubblewrap":
        _follow(config["parent"])
    os.umask(0o022)  # the folders of the new root are for the tool's user, too
    if config["engine"] == "namespaces":
        _isolate(config, setup)
    elif config["engine"] == "bubblewrap" and config["tmp_bytes"]:
        setup.step = "/tmp"
        mounts.limit_tmp("/tmp", config["tmp_bytes"], config["tmp_files"], is_mounted=True)
    os.umask(0o077)
    os.chdir("/tmp" if config["tmp_bytes"] else "/")
    setup.step = "limits"
    _limit(config)
    setup.step = "user"
    _drop(config)
    if config["engine"] == "landlock":
        _follow(config["parent"])  # forgotten when the user changed
    setup.step = "Landlock"
    if config["landlock"]:
        readable = [target for _, target in config["mounts"]] + ["/dev/" + name for name in mounts.DEVICES]
        writable = ["/dev/null"] + (["/tmp"] if config["tmp_bytes"] else [])
        landlock.restrict(readable, writable, network=config["network"])
    setup.step = "seccomp"
    if config["seccomp"]:
        code = seccomp.assemble(
            os.uname().machine,
            children=config["children"],
            network=config["network"],
            attributes=config["engine"] != "landlock",
            own_pid=os.getpid(),
        )
        seccomp.install(code)


def _follow(parent: int) -> None:
    """End when the parent ends, which may have happened before the kernel was asked to watch it."""
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _isolate(config: dict[str, Any], setup: _SetUp) -> None:
    """Return in the tool's process, behind two forks; the other two wait for it and end with its code."""
    setup.step = "namespaces"
    spaces = (
        linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    ) | (0 if config["network"] else linux.CLONE_NEWNET)
    if os.geteuid() == 0:
        linux.unshare(spaces)
    else:
        uid, gid = os.geteuid(), os.getegid()
        linux.unshare(spaces | linux.CLONE_NEWUSER)
        for name, text in {"setgroups": "deny", "uid_map": f"65534 {uid} 1", "gid_map": f"65534 {gid} 1"}.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    ready, ready_in = os.pipe()
    go, go_in = os.pipe()
    if init := os.fork():
        _close_result()
        os.close(ready_in)
        if os.read(ready, 1):
            os.write(go_in, b"g")
        _wait_for(init)
    os.close(go_in)
    setup.step = "root directory"
    mounts.build_root(config["mounts"], config["links"], tmp_bytes=config["tmp_bytes"], tmp_files=config["tmp_files"])
    if tool := os.fork():
        _close_result()
        _drop(config)
        linux.set_dumpable(False)
        linux.die_with_parent(signal.SIGKILL)
        os.write(ready_in, b"r")
        if not os.read(go, 1):  # the parent had ended before it was watched
            os._exit(1)
        _wait_for(tool)
    for fd in (ready, ready_in, go):
        os.close(fd)


def _close_result() -> None:
    """Let the result's pipe end with the tool's process, not with this one."""
    with contextlib.suppress(OSError):  # a program has none
        os.close(_RESULT_FD)


def _wait_for(child: int) -> None:
    """Reap until `child` has ended, then end with its code, 128 + N after signal N."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _limit(config: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_AS: config["memory_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: config["file_bytes"],
        resource.RLIMIT_NOFILE: config["open_files"],
        resource.RLIMIT_NPROC: config["tasks"] + config["waiting_tasks"],
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, value in limits.items():
        _, most = resource.getrlimit(which)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        resource.setrlimit(which, (value, value))
    # SIGXCPU at the limit says why; SIGKILL a second later is for those who ignore it.
    resource.setrlimit(resource.RLIMIT_CPU, (config["cpu_s"], config["cpu_s"] + 1))


def _drop(config: dict[str, Any]) -> None:
    if os.geteuid() == 0 and config["uid"] is not None:
        linux.become(config["uid"])
    linux.drop_capabilities()
    linux.forbid_new_privileges()
