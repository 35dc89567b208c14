"""System calls that Python has no function for, through libc. Runs in the child, before the tool's code does.

Every function raises OSError with the call's name, so that a refusal names the step the kernel denied.
"""

import contextlib
import ctypes
import os
from functools import cache
from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 4, 38, 24, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAP_VERSION_3 = 0x20080522
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4

# Numbers of the calls that libc has no stub for: (x86_64, aarch64). From 424 on they are the same everywhere.
_NUMBERS = {
    "pivot_root": (155, 41),
    "seccomp": (317, 277),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
MACHINES = ("x86_64", "aarch64")


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: Any) -> int:
    """Make a system call by name; OSError names it where the kernel refuses."""
    number = _NUMBERS[name][MACHINES.index(os.uname().machine)]
    # Plain ints travel as C ints through a variadic call: the upper half of the register would be garbage.
    sized = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(name, _libc().syscall(ctypes.c_long(number), *sized))


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    """prctl(2) with the arguments that are not used set to zero."""
    zero = ctypes.c_ulong(0)
    return _checked(
        "prctl", _libc().prctl(option, ctypes.c_ulong(value & (2**64 - 1)), ctypes.c_ulong(third), zero, zero)
    )


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name, for new ones."""
    _checked("unshare", _libc().unshare(flags))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); the error names the target."""
    texts = [text.encode() or None for text in (source, target, kind, data)]
    _checked(f"mount {target}", _libc().mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]))


def unmount(target: str) -> None:
    """Take a mount and everything below it away; what is still open goes when it is closed."""
    _checked(f"umount {target}", _libc().umount2(target.encode(), MNT_DETACH))


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root and hang the former one at `old`."""
    syscall("pivot_root", ctypes.c_char_p(new.encode()), ctypes.c_char_p(old.encode()))


def make_read_only(target: str) -> None:
    """Make a mount and every mount below it read-only, without set-uid programs or devices. Linux 5.12."""
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)  # struct mount_attr: set, clear, propagation, userns_fd
    path = ctypes.c_char_p(target.encode())
    syscall("mount_setattr", _AT_FDCWD, path, _AT_RECURSIVE, wanted, ctypes.sizeof(wanted))


def die_with_parent(signal_number: int) -> None:
    """Get `signal_number` when the parent ends. Whoever calls checks afterwards that it has not ended before."""
    prctl(_PR_SET_PDEATHSIG, signal_number)


def set_dumpable(yes: bool) -> None:
    """Whether processes of the same user may trace this one and read /proc/PID/mem of it."""
    prctl(_PR_SET_DUMPABLE, int(yes))


def drop_capabilities() -> None:
    """Give up every capability for good: bounding, ambient, permitted, effective and inheritable sets."""
    for number in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except OSError:  # past the last capability, or not allowed to: then there is none to inherit
            break
    with contextlib.suppress(OSError):  # Linux before 4.3 has no ambient set
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    _checked("capset", _libc().capset(header, (ctypes.c_uint32 * 6)()))


def forbid_new_privileges() -> None:
    """No program that this process starts gains rights by set-uid or file capabilities."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def become(uid: int) -> None:
    """Turn from root into user and group `uid`, without other groups."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
