"""Writing a file or a directory so that its final name never holds half of it, even after a kill or a power cut.

    with replacing(out, needed=bytes, force=False) as partial:
        ...write to `partial`, a hidden path beside `out`...

A block that ends well is synced to disk and renamed to `out`; one that raises leaves nothing behind. What a killed
process leaves is hidden (.out.*.partial), is locked while its writer lives, and is removed by the next writer of `out`.

Replacing a directory exchanges the two names in one step where the system can (Linux); elsewhere the old one is moved
aside first, so that a kill between the two renames leaves it under its hidden name.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gemworks.errors import ConfigError, StorageError

try:
    import fcntl
except ImportError:  # not on Windows: leftovers of killed writers stay until removed by hand
    fcntl = None

_SUFFIX = ".partial"


@contextlib.contextmanager
def replacing(
    final: Path,
    *,
    needed: int,
    force: bool = False,
    kind: Literal["file", "directory"] = "file",
    durable: bool = True,
) -> Iterator[Path]:
    """Yield a path to write to, that becomes `final` when the block ends well.

    `needed` is the number of bytes to come, checked against the free space first. Not `durable`: a power cut may leave
    `final` with holes, for files that are checked when they are opened and can be made again. Raises ConfigError if
    `final` exists and `force` is off (an empty directory may be filled), StorageError if it cannot be written; then
    `final` is unchanged.
    """
    try:
        check_target(final, force=force, kind=kind)
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        check_space(final, needed)
        with _partial(final, kind) as partial:
            yield partial
            if durable:
                _sync(partial)
            _rename(partial, final)
            if durable:
                _sync_one(final.parent)
    except OSError as error:
        raise storage_error(final, error, needed) from error


def check_target(final: Path, *, force: bool, kind: Literal["file", "directory"]) -> None:
    """Raise ConfigError if `final` may not be written: it is there without `force`, or is not what `kind` replaces."""
    if not final.exists() and not final.is_symlink():
        return
    if final.is_dir() != (kind == "directory"):
        raise ConfigError(
            f"{final} must be a {kind} to be written, and it is a {'directory' if final.is_dir() else 'file'}.\n"
            "Choose another name."
        )
    if final.is_dir() and not any(final.iterdir()):
        return
    if not force:
        raise ConfigError(f"{final} exists already.\nChoose another name, or add --force to replace it.")
    # A mistyped path must not cost somebody's home directory.
    if final.is_dir() and not any((final / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ConfigError(
            f"{final} exists and does not hold a model (no config.json), so it is not replaced.\nChoose another name."
        )


def check_space(path: Path, needed: int) -> None:
    """Raise StorageError unless the disk of `path`'s directory has `needed` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise StorageError(_full(path, needed, free))


def storage_error(path: Path, error: OSError, needed: int) -> StorageError:
    """The StorageError that tells a user what `error`, met while writing `path`, means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return StorageError(_full(path, needed, free))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{path} cannot be written: {error.strerror} ({error.filename or path.parent}).\n"
            "Choose a place you may write to."
        )
    return StorageError(f"{path} cannot be written: {error.strerror or error}.")


def _full(path: Path, needed: int, free: int) -> str:
    return (
        f"{path} needs {needed:,} bytes, and its disk has {free:,} bytes free.\n"
        "Free some room or choose a place on another disk; nothing was written."
    )


@contextlib.contextmanager
def _partial(final: Path, kind: str) -> Iterator[Path]:
    """A locked, hidden, empty file or directory beside `final`; gone at the end unless it was renamed."""
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}{_SUFFIX}")
    if kind == "directory":
        partial.mkdir()
        handle = os.open(partial, os.O_RDONLY)
    else:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    finally:
        os.close(handle)
        _remove(partial)


def _remove_leftovers(final: Path) -> None:
    """Remove what killed writers of `final` left: partial outputs that nobody holds a lock on."""
    if fcntl is None:
        return
    prefix = f".{final.name}."
    for entry in final.parent.iterdir():
        if not (entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX)):
            continue
        with contextlib.suppress(OSError):  # another writer's, or gone already
            handle = os.open(entry, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(entry)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file, or a directory with all in it, on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    if path.is_dir() and sys.platform == "win32":
        return  # directories cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(partial: Path, final: Path) -> None:
    """Give `partial` the name `final`. What had the name ends up removed, or keeps it if an error occurs."""
    if not final.is_dir() or not any(final.iterdir()):
        os.replace(partial, final)
    elif _exchange(partial, final):
        _remove(partial)  # holds the old directory now
    else:
        old = partial.with_suffix(".old")  # not .partial: nobody may take it for a leftover
        os.rename(final, old)
        try:
            os.rename(partial, final)
        except OSError:
            os.rename(old, final)
            raise
        _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE (linux/fs.h)
    if not sys.platform.startswith("linux"):
        return False
    try:
        swap = ctypes.CDLL(None).renameat2
    except AttributeError:  # a C library older than 2018
        return False
    return swap(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0
