"""A packed file: every tensor of one model as the kernels want it, so that a start maps it and copies nothing.

    0         MAGIC, 8 bytes
    8         n: u64, the length of the header          16   BLAKE2b-128 of the header: the content hash of the whole
    32        header: n bytes of JSON, zeros up to a multiple of PAGE
    data      tensor | zeros to a page | tensor | ...   zeros to a whole number of blocks (blocksums.py)

    header    {"format": 1, "layout": LAYOUT_VERSION, "source": {...}, "plan": "...", "broken": [names with NaN],
               "data": position, "tensors": [{"name", "kind", "shape", "offset", "size"}], "sums": ["16 digits", ...]}

`kind` is a dtype (a plain array) or a format of ops/weight.py (the bytes of ops/layout.pack). `sums` covers
every byte after the header and the hash covers `sums`, so that damage anywhere is found when the file is opened.

Not here: where the files are, which is stale, who is evicted (packed_store.py); what goes in (load.py).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from gemworks.weights.atomic import replacing
from gemworks.weights.blocksums import block_sums
from gemworks.weights.packed_header import (
    BLOCK_BYTES,
    FORMAT_VERSION,
    PAGE,
    PREFIX_BYTES,
    NotUsable,
    header_bytes,
    map_file,
    room_for,
)

if TYPE_CHECKING:
    from gemworks.ops.weight import PackedWeight

# Kinds that are plain arrays; the integers are those of tokenizer/table.py.
PLAIN = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: np.dtype(name) for name in ("uint8", "int32", "uint32", "uint64")},
}

# Blocks that are summed at a time while a file is written: 64 MiB of mapping.
_SUM_BLOCKS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTensor:
    """A tensor of a packed file; `offset` is its position in the file, a multiple of PAGE."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSource:
    """A tensor to be packed: `produce` returns its `size` bytes, as uint8 or as the plain array."""

    name: str
    kind: str
    shape: tuple[int, ...]
    size: int
    produce: Callable[[], np.ndarray]


class PackedFile:
    """An open packed file, mapped. Arrays point into the mapping, which lives as long as the last of them."""

    def __init__(self, path: Path):
        """Map `path` and check its header. Raises NotUsable; the data are not looked at before `damage`."""
        self.path = path
        self._map, self.header = map_file(path)
        self.num_bytes = len(self._map)
        self.tensors = {tensor.name: tensor for tensor in _tensors(self.header, self.num_bytes)}

    def array(self, name: str) -> np.ndarray:
        """The plain array, or the uint8 bytes of a packed matrix; read-only, without a copy."""
        tensor = self.tensors[name]
        if tensor.kind in PLAIN:
            flat = np.frombuffer(self._map, PLAIN[tensor.kind], count=prod(tensor.shape), offset=tensor.offset)
            return flat.reshape(tensor.shape)
        return np.frombuffer(self._map, np.uint8, count=tensor.size, offset=tensor.offset)

    def weight(self, name: str) -> np.ndarray | PackedWeight:
        """The plain array, or the packed matrix."""
        tensor = self.tensors[name]
        if tensor.kind in PLAIN:
            return self.array(name)
        from gemworks.ops.weight import PackedWeight

        return PackedWeight(self.array(name), tensor.kind, tensor.shape)  # type: ignore[arg-type]

    def damage(self, threads: int = 1) -> str | None:
        """Compare every byte with the sums; return what is wrong, or None. Reads the whole file."""
        data = self.header["data"]
        sums = block_sums(np.frombuffer(self._map, np.uint8, offset=data), threads)
        bad = [i for i, (now, then) in enumerate(zip(_hex(sums), self.header["sums"], strict=True)) if now != then]
        if not bad:
            return None
        begin, end = data + bad[0] * BLOCK_BYTES, data + (bad[0] + 1) * BLOCK_BYTES
        hit = [t.name for t in self.tensors.values() if t.offset < end and t.offset + t.size > begin]
        return f"is damaged in {len(bad)} of {sums.size} blocks, first at {', '.join(hit[:3]) or 'its padding'}"

    def content_hash(self) -> str:
        """The hash of the whole file's content, in hex."""
        return self._map[16:PREFIX_BYTES].hex()


def data_bytes(sources: Sequence[PackedSource]) -> int:
    """Return what a packed file of these tensors takes after its header."""
    return _place(sources, 0)[1] * BLOCK_BYTES


def write_packed(
    path: Path,
    sources: Sequence[PackedSource],
    *,
    layout: int,
    source: Mapping[str, Any],
    plan: str,
    broken: Callable[[], Sequence[str]] = tuple,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a packed file, tensor by tensor; it appears whole or not at all.

    `broken()` is asked after the last tensor. Raises StorageError where the disk is full or refuses; `path` is then as
    it was.
    """
    header = {"format": FORMAT_VERSION, "layout": layout, "source": dict(source), "plan": plan, "broken": []}
    header |= {"data": 0, "tensors": [], "sums": []}
    tensors, num_blocks = _place(sources, 0)
    # Numbers grow by the header's own length once it is known, and `broken` names at most every tensor.
    rows = [{**row, "offset": 10**15} for row in _rows(tensors)]
    names = [source.name for source in sources]
    data = room_for(header | {"tensors": rows, "sums": ["0" * 16] * num_blocks, "broken": names})
    tensors, num_blocks = _place(sources, data)
    size, done, total = data + num_blocks * BLOCK_BYTES, 0, sum(source.size for source in sources)
    with replacing(path, needed=size, force=True, durable=False) as partial, partial.open("r+b") as file:
        file.truncate(size)
        for tensor, one in zip(tensors, sources, strict=True):
            array = np.ascontiguousarray(one.produce()).reshape(-1).view(np.uint8)
            assert array.size == one.size, f"{one.name}: {array.size} bytes, {one.size} were announced"
            file.seek(tensor.offset)
            file.write(array.data)
            done += one.size
            if progress:
                progress(done, total)
        file.flush()
        header |= {"data": data, "tensors": _rows(tensors), "broken": list(broken())}
        header["sums"] = [text for sums in _file_sums(file, data, num_blocks) for text in _hex(sums)]
        file.seek(0)
        file.write(header_bytes(header))
        _let_go(file)


def _let_go(file: Any) -> None:
    """Forget the pages that writing left in memory, 4 KB each, so that the mapping reads the file in pages of 2 MB.

    Those are asked for when it is mapped (packed_header.map_file), and last as long as the file stays in memory.
    """
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.fsync(file.fileno())  # pages that are not on the disk cannot be forgotten
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _place(sources: Sequence[PackedSource], data: int) -> tuple[list[PackedTensor], int]:
    """Give every tensor its place from `data` on; also return the number of blocks they fill."""
    placed, position = [], data
    for one in sources:
        placed.append(
            PackedTensor(name=one.name, kind=one.kind, shape=tuple(one.shape), offset=position, size=one.size)
        )
        position += -(-one.size // PAGE) * PAGE
    return placed, -(-(position - data) // BLOCK_BYTES)


def _rows(tensors: Sequence[PackedTensor]) -> list[dict[str, Any]]:
    return [{"name": t.name, "kind": t.kind, "shape": t.shape, "offset": t.offset, "size": t.size} for t in tensors]


def _file_sums(file: Any, data: int, num_blocks: int) -> Iterator[np.ndarray]:
    """The sums of what was written, a few blocks at a time, so that the mapping never adds up in memory."""
    for first in range(0, num_blocks, _SUM_BLOCKS):
        begin = data + first * BLOCK_BYTES
        count = min(_SUM_BLOCKS, num_blocks - first) * BLOCK_BYTES
        aligned = begin - begin % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(file.fileno(), count + begin - aligned, access=mmap.ACCESS_READ, offset=aligned) as window:
            view = np.frombuffer(window, np.uint8, count, begin - aligned)
            sums = block_sums(view)
            del view
        yield sums


def _tensors(header: dict[str, Any], size: int) -> list[PackedTensor]:
    tensors = [PackedTensor(**{**row, "shape": tuple(row["shape"])}) for row in header["tensors"]]
    if any(t.offset % PAGE or t.offset < header["data"] or t.offset + t.size > size for t in tensors):
        raise NotUsable("places tensors outside itself")
    return tensors


def _hex(sums: np.ndarray) -> list[str]:
    return [f"{value:016x}" for value in sums.tolist()]
