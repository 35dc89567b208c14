"""Landlock: the process says which files it may use from now on, and the kernel holds it and its children to that.

Works for anybody since Linux 5.13, inside containers too. ABI 1 handles files, 2 renames, 3 truncation (Linux 6.2),
4 TCP, 5 ioctl on devices, 6 abstract sockets and signals. It does not handle chmod, chown, stat or chdir: the seccomp
filter does where no mount namespace makes the rest read-only.
"""

import ctypes
import os
from collections.abc import Sequence

from gemworks.tools.sandbox import linux

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_OF_ABI_1, _REFER, _TRUNCATE, _IOCTL_DEV = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
_FOR_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_UNIX_SOCKET, _SIGNAL = 1, 2
_VERSION_FLAG, _PATH_BENEATH = 1, 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # what _pack_ has always meant; Python 3.14 wants it said
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none."""
    try:
        return linux.syscall("landlock_create_ruleset", ctypes.c_void_p(None), 0, _VERSION_FLAG)
    except (OSError, ValueError):
        return 0


def _handled(version: int) -> int:
    return (
        _ALL_OF_ABI_1
        | (_REFER if version >= 2 else 0)
        | (_TRUNCATE if version >= 3 else 0)
        | (_IOCTL_DEV if version >= 5 else 0)
    )


def restrict(readable: Sequence[str], writable: Sequence[str], *, network: bool) -> None:
    """Leave this process the files below `readable` and `writable`, and no TCP, signal or socket beyond itself.

    A path that does not exist is left out. Needs no_new_privs.
    """
    version = abi()
    handled = _handled(version)
    net = _BIND_TCP | _CONNECT_TCP if version >= 4 and not network else 0
    scoped = _ABSTRACT_UNIX_SOCKET | _SIGNAL if version >= 6 else 0
    attributes = _Ruleset(handled, net, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = linux.syscall("landlock_create_ruleset", ctypes.byref(attributes), size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ & handled)
        for path in writable:
            _allow(ruleset, path, handled & ~_EXECUTE)
        linux.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        raise PermissionError(f"{path} cannot be read by the tool's user (uid {os.getuid()})") from error
    try:
        if not os.path.isdir(path):
            access &= _FOR_A_FILE
        rule = _PathBeneath(access, parent)
        linux.syscall("landlock_add_rule", ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)
