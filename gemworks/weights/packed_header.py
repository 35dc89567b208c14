"""The header of a packed file (drawn in packed.py): what it must say, and whether it is whole. Without numpy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAGIC = b"GWPACK\r\n"
FORMAT_VERSION = 1
PAGE = 4096
BLOCK_BYTES = 1 << 20  # what one checksum covers
PREFIX_BYTES = 32  # before the header
_MAX_HEADER_BYTES = 1 << 26


class NotUsable(Exception):
    """Why a file is not the packed file that was wanted; the text ends a sentence that begins with the path."""


def map_file(path: Path) -> tuple[mmap.mmap, dict[str, Any]]:
    """Map `path` and return the mapping with its header. Raises NotUsable."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < PREFIX_BYTES:
                raise NotUsable(f"is {size} bytes long")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise NotUsable(f"cannot be read ({error.strerror or error})") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Pages of 2 MB where the file system has them (seen: ext4, Linux 6.18). One thread read 24 instead of 18 GB/s,
        # and touching 1 GB for the first time took 6 ms instead of 94. Refused elsewhere.
        with contextlib.suppress(OSError):
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped, _parse(mapped, size)


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a packed file. Raises NotUsable."""
    mapped, header = map_file(path)
    mapped.close()
    return header


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """Return the start of a file with this header, without the zeros that follow."""
    text = _dump(header)
    return MAGIC + len(text).to_bytes(8, "little") + _digest(text) + text


def room_for(header: Mapping[str, Any]) -> int:
    """Return the bytes that a file with such a header sets aside for it: whole pages."""
    return -(-(PREFIX_BYTES + len(_dump(header))) // PAGE) * PAGE


def _parse(data: mmap.mmap, size: int) -> dict[str, Any]:
    """The header of a mapped file, after its hash and its fields were checked."""
    if data[:8] != MAGIC:
        raise NotUsable("is not a packed file")
    length = int.from_bytes(data[8:16], "little")
    if length > min(_MAX_HEADER_BYTES, size - PREFIX_BYTES):
        raise NotUsable("is cut off")
    text = data[PREFIX_BYTES : PREFIX_BYTES + length]
    if _digest(text) != data[16:PREFIX_BYTES]:
        raise NotUsable("has a damaged header")
    header = json.loads(text)  # what was hashed was written here, so it is JSON
    if header.get("format") != FORMAT_VERSION:
        raise NotUsable(f"is of version {header.get('format')}, and this one writes {FORMAT_VERSION}")
    if size != header["data"] + len(header["sums"]) * BLOCK_BYTES:
        raise NotUsable("is cut off")
    if any(data[PREFIX_BYTES + length : header["data"]]):
        raise NotUsable("has a damaged header")
    return header


def _dump(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()
