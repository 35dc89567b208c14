"""A root directory of its own: what may be read is bound read-only, /tmp is new and small, nothing else exists.

    /            tmpfs, read-only     <- bound: the interpreter, libraries, what the policy names
    /dev         null zero full random urandom
    /tmp         tmpfs of tmp_bytes and tmp_files, no programs
    (no /proc, /sys, /run, /dev/shm)

The way there is pivot_root twice: first into a scratch tmpfs that holds the old root at /old, so that paths hidden by
the scratch mount itself (below /tmp) can still be bound; then into /new, after which /old is unmounted.
"""

import os
from collections.abc import Sequence

from gemworks.tools.sandbox import linux

_BASE = "/tmp"  # any directory that exists everywhere: it is covered for a moment
DEVICES = ("null", "zero", "full", "random", "urandom")


def build_root(mounts: Sequence[Sequence[str]], links: Sequence[Sequence[str]], *, tmp_bytes: int, tmp_files: int):
    """Replace the root of this mount namespace. `mounts` are (source, target), `links` (target of the link, its
    path)."""
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", _BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=4m,nr_inodes=16384,mode=755")
    os.mkdir(f"{_BASE}/new", 0o755)
    os.mkdir(f"{_BASE}/old", 0o755)
    linux.mount(f"{_BASE}/new", f"{_BASE}/new", "", linux.MS_BIND)  # pivot_root wants a mount point
    linux.pivot_root(_BASE, f"{_BASE}/old")
    os.chdir("/")
    for pointed, path in links:
        os.makedirs("/new" + os.path.dirname(path), 0o755, exist_ok=True)
        os.symlink(pointed, "/new" + path)
    if tmp_bytes:  # before the others: what is bound may lie below it
        os.mkdir("/new/tmp")
        limit_tmp("/new/tmp", tmp_bytes, tmp_files)
    for source, target in mounts:
        _bind(f"/old{source}", f"/new{target}")
    for name in DEVICES:
        _bind(f"/old/dev/{name}", f"/new/dev/{name}", device=True)
    os.chdir("/new")
    linux.pivot_root(".", ".")
    linux.unmount(".")
    os.chdir("/")
    linux.mount("", "/", "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)


def limit_tmp(path: str, tmp_bytes: int, tmp_files: int, *, is_mounted: bool = False) -> None:
    """A tmpfs that holds at most so many bytes and files: an inode takes about 1 KiB of memory that `size` misses."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | (linux.MS_REMOUNT if is_mounted else 0)
    # Mount points below it are files, too.
    options = f"size={tmp_bytes},nr_inodes={tmp_files + 64}" + ("" if is_mounted else ",mode=1777")
    linux.mount("tmpfs", path, "tmpfs", flags, options)


def _bind(source: str, target: str, device: bool = False) -> None:
    if os.path.isdir(source):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(source, target, "", linux.MS_BIND | linux.MS_REC)
    if not device:
        linux.make_read_only(target)
