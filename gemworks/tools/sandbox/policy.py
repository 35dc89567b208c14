"""What a sandboxed tool may have. The default is next to nothing."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gemworks.errors import ConfigError

_MB = 1 << 20
# Never shown, even where everything else is: other processes, devices, sockets of services, other people's files.
_HIDDEN = ("proc", "sys", "dev", "run", "tmp", "lost+found")


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Rights and limits of one call. What cannot be held on a machine is refused there, never ignored.

    readable      files and folders besides the interpreter and the system's libraries; "/" is everything but
                  /proc /sys /dev /run /tmp. Nothing is ever writable but the private /tmp.
    packages      whether Python packages (site-packages) can be imported: their code is readable
    network       whether the tool sees the network of this machine
    children      whether it may start programs; they end with the call
    tasks         threads and processes together
    memory_bytes  address space of each process; /tmp comes on top
    tmp_bytes, tmp_files   size of the private /tmp; 0 bytes is none
    file_bytes    largest file
    cpu_s         processor seconds of each process
    wall_s        seconds in all, the start of the child (about 0.1) included
    open_files    descriptors of each process
    result_bytes, output_bytes   a larger result is refused; more text on stdout or stderr is dropped
    filter_syscalls   False gives up the seccomp filter, for tools that need a call it denies
    """

    readable: tuple[str, ...] = ()
    packages: bool = True
    network: bool = False
    children: bool = False
    tasks: int = 32
    memory_bytes: int = 512 * _MB
    tmp_bytes: int = 64 * _MB
    tmp_files: int = 4096
    file_bytes: int = 64 * _MB
    cpu_s: int = 10
    wall_s: float = 20.0
    open_files: int = 64
    result_bytes: int = _MB
    output_bytes: int = 64 << 10
    filter_syscalls: bool = True

    def __post_init__(self):
        object.__setattr__(self, "readable", tuple(_absolute(path) for path in self.readable))
        least = {"tasks": 1, "memory_bytes": 32 * _MB, "cpu_s": 1, "open_files": 16, "result_bytes": 2, "tmp_bytes": 0}
        least |= {"tmp_files": 1, "file_bytes": 0, "output_bytes": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise ConfigError(f"a sandbox policy's {name} must be a whole number from {smallest:,}, got {value!r}.")
        if not isinstance(self.wall_s, int | float) or not 0 < self.wall_s < float("inf"):
            raise ConfigError(f"a sandbox policy's wall_s must be a number of seconds above 0, got {self.wall_s!r}.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Policy":
        """A policy from names and values, as read from a file."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"a sandbox policy has no {', '.join(unknown)}. Known: {', '.join(known)}.")
        return cls(**values)

    def mounts(self) -> list[tuple[str, str]]:
        """(what, where) of every path in `readable`: links are followed here, once, so that none can lead elsewhere."""
        found: list[tuple[str, str]] = []
        for path in self.readable:
            if path == "/":
                found += [(str(p.resolve()), str(p)) for p in Path("/").iterdir() if _is_shown(p)]
                continue
            real = os.path.realpath(path)
            if not os.path.exists(real):
                raise ConfigError(f"a sandbox policy's readable paths must exist, got {path}.")
            if real == "/" or real.split("/")[1] in ("proc", "sys", "dev"):
                raise ConfigError(
                    f"a sandbox policy cannot make {path} readable: it shows other processes and devices."
                )
            found.append((real, path))
            if real != path:
                found.append((real, real))
        return found


def _is_shown(path: Path) -> bool:
    """Whether something in / is a part of "everything". A child of root is another user, to whom /root is closed."""
    closed = os.geteuid() == 0 and not path.stat().st_mode & stat.S_IXOTH
    return path.name not in _HIDDEN and not closed and not path.is_symlink()


def _absolute(path: object) -> str:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a sandbox policy's readable must be paths, got {path!r}.")
    return os.path.abspath(os.path.expanduser(os.fspath(path)))
