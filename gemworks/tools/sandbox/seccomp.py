"""A seccomp filter: the kernel asks a small BPF program before every system call of the tool.

The program is assembled here: 8 bytes an instruction, forward jumps only, no library needed.

    ld arch; not ours -> kill         a 32-bit call has other numbers
    ld nr;   x32 -> ENOSYS            (x86_64 only)
    for each call: nr is it? -> allow, or look at its arguments -> allow / EPERM
    nr > the largest known -> ENOSYS  libc falls back, as on an older kernel
    EPERM

An argument is compared by its lower 32 bits: all that are looked at are ints or flag words to the kernel.
"""

import ctypes
import os
import struct
from typing import NamedTuple

from gemworks.tools.sandbox import linux, syscalls

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

ALLOW, KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, EACCES, ENOSYS = _ERRNO | 1, _ERRNO | 13, _ERRNO | 38

_LD_ABS, _JEQ, _JGT, _JGE, _JSET, _RET, _AND = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06, 0x54
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16

_CLONE_NAMESPACES, _CLONE_THREAD = 0x7E020000, 0x00010000
_AF_UNIX, _AF_INET, _AF_INET6, _SOCK_STREAM, _SOCK_FLAGS = 1, 2, 10, 1, 0x80800
# isatty, window size, bytes waiting, (not) inherited, non-blocking. Not TIOCSTI, which types into a terminal.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451, 0x5421)
# Names of threads and mappings, and questions. Not PR_SET_PDEATHSIG: the tool shall end with its parent.
_PRCTLS = (15, 16, 3, 21, 23, 39, 0x53564D41)
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15  # these send signals to others


class Check(NamedTuple):
    """A condition on one argument, after `mask`: one_of, none_of, has (some of the bits) or lacks (all of the bits)."""

    argument: int
    test: str
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _test(check: Check, otherwise: int) -> bytes:
    """Fall through where the check holds, else return `otherwise`."""
    load = _op(_LD_ABS, _ARGS_OFFSET + 8 * check.argument)
    if check.mask != 0xFFFFFFFF:
        load += _op(_AND, check.mask)
    if check.test in ("has", "lacks"):
        (bits,) = check.values
        return load + (_op(_JSET, bits, 1, 0) if check.test == "has" else _op(_JSET, bits, 0, 1)) + _op(_RET, otherwise)
    left = len(check.values)
    if check.test == "one_of":  # a match jumps over the rest and the return
        steps = b"".join(_op(_JEQ, value, left - i, 0) for i, value in enumerate(check.values))
        return load + steps + _op(_RET, otherwise)
    steps = b"".join(_op(_JEQ, value, left - 1 - i, 1 if i == left - 1 else 0) for i, value in enumerate(check.values))
    return load + steps + _op(_RET, otherwise)


def checked_calls(*, children: bool, network: bool, own_pid: int) -> dict[str, tuple[list[Check], int]]:
    """Calls that depend on their arguments: name -> (checks, what is returned where one fails)."""
    clone = [Check(0, "lacks", (_CLONE_NAMESPACES,))]
    if not children:
        clone.append(Check(0, "has", (_CLONE_THREAD,)))
    families = (_AF_INET, _AF_INET6) if network else ()
    mine = [Check(0, "one_of", (own_pid,))]
    return {
        "clone": (clone, EPERM),
        "clone3": ([Check(0, "one_of", ())], ENOSYS),  # its flags are in memory, out of sight: libc falls back to clone
        "ioctl": ([Check(1, "one_of", _IOCTLS)], EPERM),
        "fcntl": ([Check(1, "none_of", (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX))], EPERM),
        "prctl": ([Check(0, "one_of", _PRCTLS)], EPERM),
        "prlimit64": ([Check(0, "one_of", (0, own_pid))], EPERM),
        "kill": ([] if children else mine, EPERM),
        "tgkill": ([] if children else mine, EPERM),
        "socket": ([Check(0, "one_of", families)], EACCES),
        # Stream pairs only: a datagram pair may send to any other unix socket by name.
        "socketpair": (
            [Check(0, "one_of", (_AF_UNIX,)), Check(1, "one_of", (_SOCK_STREAM,), 0xFFFFFFFF ^ _SOCK_FLAGS)],
            EACCES,
        ),
    }


def assemble(machine: str, *, children: bool, network: bool, attributes: bool, own_pid: int) -> bytes:
    """The filter's program. `attributes`: chmod and its like may be called, as nothing outside can be changed by
    them."""
    number = syscalls.numbers(machine)
    names = " ".join(
        (
            *(syscalls.MEMORY, syscalls.FILES, syscalls.WAITING, syscalls.TIME, syscalls.SIGNALS, syscalls.SELF),
            *(syscalls.PAIR, syscalls.ATTRIBUTES if attributes else "", syscalls.NETWORK if network else ""),
            syscalls.CHILDREN if children else "",
        )
    ).split()
    code = _op(_LD_ABS, _ARCH_OFFSET) + _op(_JEQ, ARCHITECTURES[machine], 1, 0) + _op(_RET, KILL)
    code += _op(_LD_ABS, _NR_OFFSET)
    if machine == "x86_64":
        code += _op(_JGE, _X32_BIT, 0, 1) + _op(_RET, ENOSYS)
    for name in names:
        if name in number:
            code += _op(_JEQ, number[name], 0, 1) + _op(_RET, ALLOW)
    for name, (checks, otherwise) in checked_calls(children=children, network=network, own_pid=own_pid).items():
        if name not in number:
            continue
        body = b"".join(_test(check, otherwise) for check in checks) + _op(_RET, ALLOW)
        code += _op(_JEQ, number[name], 0, len(body) // 8) + body
    known = max(number.values())
    return code + _op(_JGT, known, 0, 1) + _op(_RET, ENOSYS) + _op(_RET, EPERM)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def is_available() -> bool:
    """Whether this kernel takes filters and the machine is one whose call numbers are known."""
    if os.uname().machine not in ARCHITECTURES:
        return False
    try:
        linux.syscall("seccomp", 2, 0, ctypes.byref(ctypes.c_uint32(ALLOW)))  # SECCOMP_GET_ACTION_AVAIL
    except OSError:
        return False
    return True


def install(code: bytes) -> None:
    """Put every thread of this process under the filter, for good. Needs no_new_privs."""
    held = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(held))
    linux.syscall("seccomp", 1, 1, ctypes.byref(program))  # SECCOMP_SET_MODE_FILTER, TSYNC
