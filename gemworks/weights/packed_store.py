"""The packed models of this machine: which file belongs to a model, whether it is still right, and who makes room.

    <cache>/packed/<name>-<16 hex digits>.packed        the digits: BLAKE2b of the model's path and the plan

A file is used only if its header names this layout, this plan, and source files whose size, time, inode and first
bytes are still the same; otherwise it is built again under the same name. Its modification time is when it was last
used: above the limit (env.packed_limit) the files that were not used for longest go first. A process that has mapped a
file keeps it, also after it was replaced or removed.

Not here: what is in a file (packed.py). No numpy and no jax on import: `gemworks list` reads this.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks import env
from gemworks.errors import StorageError
from gemworks.weights.packed_header import NotUsable, read_header

if TYPE_CHECKING:
    from gemworks.weights.packed import PackedFile

try:
    import fcntl
except ImportError:  # not on Windows: two processes that start at once may both pack
    fcntl = None

_SUFFIX = ".packed"
_DEFAULT_LIMIT = 50 * 10**9

# Bytes at the start of a source file that are part of its identity: all of a safetensors header up to 27B.
_HEAD_BYTES = 1 << 20

# How long a process waits for another one that packs the same model before it packs by itself.
_WAIT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedModel:
    """A file of the store. `source` and `plan` are None where the file is not ours or is damaged."""

    path: Path
    source: Path | None
    plan: str | None
    num_bytes: int
    used_s: float  # seconds since 1970


def packed_path(source: Path, plan: str) -> Path:
    """Where the packed form of the model at `source` under `plan` is, or would be."""
    source = source.resolve()
    digest = hashlib.blake2b(f"{source}\0{plan}".encode(), digest_size=8).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem if source.is_file() else source.name)[:60]
    return _folder() / f"{readable}-{digest}{_SUFFIX}"


def identity(source: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What tells whether the files of a model are still the ones that were packed."""
    rows = []
    for path in sorted(set(files)):
        status = path.stat()
        with path.open("rb") as file:
            head = hashlib.blake2b(file.read(_HEAD_BYTES), digest_size=16).hexdigest()
        own = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino, "head": head}
        rows.append({"path": str(path.resolve()), **own})
    return {"path": str(source.resolve()), "files": rows}


def open_current(
    path: Path,
    source: Mapping[str, Any],
    plan: str,
    layout: int,
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]] | None = None,
) -> PackedFile:
    """Open a packed file whose `tensors` are name -> (kind, shape, bytes); None: they are not compared.

    Raises NotUsable if it is none, or is of other files, another plan, layout or model.
    """
    from gemworks.weights.packed import PackedFile

    found = PackedFile(path)
    if found.header["layout"] != layout:
        raise NotUsable(f"is of layout {found.header['layout']}, and these kernels read layout {layout}")
    if found.header["plan"] != plan:
        raise NotUsable("is of another plan")
    if found.header["source"] != source:
        raise NotUsable(f"is of an earlier state of {source['path']}")
    if tensors is not None and {t.name: (t.kind, t.shape, t.size) for t in found.tensors.values()} != tensors:
        raise NotUsable("holds other tensors")
    with contextlib.suppress(OSError):  # another user's cache can be read all the same
        os.utime(path)
    return found


def list_packed() -> list[PackedModel]:
    """Every packed file, the one used last first."""
    return sorted((_entry(path) for path in _files()), key=lambda entry: entry.used_s, reverse=True)


def packed_of(source: Path) -> list[PackedModel]:
    """The packed files of the model at `source`, or of files below it."""
    source = source.resolve()
    return [entry for entry in list_packed() if entry.source and source in (entry.source, *entry.source.parents)]


def remove(entries: Sequence[PackedModel]) -> int:
    """Remove packed files; return the bytes that were freed."""
    for entry in entries:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{entry.path} cannot be removed: {error.strerror}.") from error
    return sum(entry.num_bytes for entry in entries)


def make_room(needed: int, *, keep: Path) -> bool:
    """Remove the files used longest ago until `needed` more bytes fit the limit; False if they never will.

    `keep` is the file to be written: what it holds now counts as free.
    """
    others = [entry for entry in list_packed() if entry.path != keep]
    limit = _limit(sum(entry.num_bytes for entry in others))
    if needed > limit:
        return False
    while others and needed + sum(entry.num_bytes for entry in others) > limit:
        remove([others.pop()])
    return True


@contextlib.contextmanager
def building(path: Path) -> Iterator[None]:
    """Hold the right to build `path`, or go on without after _WAIT_S: two builders only cost time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        until = time.monotonic() + _WAIT_S
        while not _try_lock(handle) and time.monotonic() < until:
            time.sleep(0.05)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _try_lock(handle: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _limit(used: int) -> int:
    own = env.packed_limit()
    if own is not None:
        return own
    _folder().mkdir(parents=True, exist_ok=True)
    return min(_DEFAULT_LIMIT, (shutil.disk_usage(_folder()).free + used) // 2)


def _folder() -> Path:
    return env.cache() / "packed"


def _files() -> list[Path]:
    try:
        return sorted(path for path in _folder().iterdir() if path.suffix == _SUFFIX and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{_folder()} cannot be read: {error.strerror}.") from error


def _entry(path: Path) -> PackedModel:
    status = path.stat()
    try:
        header = read_header(path)
        source, plan = Path(header["source"]["path"]), str(header["plan"])
    except NotUsable:
        source = plan = None
    return PackedModel(path=path, source=source, plan=plan, num_bytes=status.st_size, used_s=status.st_mtime)
