"""The safetensors format: a header in JSON, then the tensors' bytes. Checked whole, mapped, never parsed twice.

    byte 0        8                    8 + n                                 end of file
         | n: u64 | header: n bytes JSON | tensor | tensor | ...           |
                    {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}

Offsets count from 8 + n. As the format demands, tensors cover the rest of the file without holes or overlaps, so that
a file that was cut anywhere is seen to be cut. Nothing is allocated by a number in the file before it is compared with
the file's size.

Not here: which names mean what (names.py), several files as one model (hf.py), writing (safetensors_write.py).
"""

import contextlib
import json
import mmap
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from gemworks.errors import CheckpointError, StorageError

# Larger headers are refused by every reader of the format, so no writer makes them.
MAX_HEADER_BYTES = 100_000_000

# More than any array library takes; bounds the product of a hostile shape.
MAX_DIMS = 32

# Mapped arrays are handed out without a copy where they start on this boundary: XLA wants it, and a cache line is it.
ALIGNMENT = 64

# Bits of an element of every dtype of the format, also of those Gemworks does not read.
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

# The dtypes a model's float tensors may have.
NUMPY_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}

# What `SafetensorsFile.array` returns: those, and the codes of quantized matrices.
ARRAY_DTYPES = {**NUMPY_DTYPES, "U8": np.dtype(np.uint8), "I8": np.dtype(np.int8)}


class StoredSpan(NamedTuple):
    """A tensor of the header; `begin` and `end` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One file, mapped. `tensors` lists it in the order of its bytes; arrays point into the mapping where they can."""

    def __init__(self, path: Path):
        """Map and check `path`. Raises StorageError if it cannot be read, CheckpointError if it is not whole."""
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 8:
                    _refuse(path, f"must be at least 8 bytes long, and it has {size}")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
        try:
            self.tensors, self.metadata = _read_header(path, self._map, size)
        except CheckpointError:
            self._map.close()
            raise

    def array(self, name: str) -> np.ndarray:
        """One tensor of ARRAY_DTYPES: a read-only view of the mapping if it starts on 64 bytes, else a copy."""
        span = self.tensors[name]
        dtype = ARRAY_DTYPES[span.dtype]
        flat = np.frombuffer(self._map, dtype, count=prod(span.shape), offset=span.begin)
        return (flat if span.begin % ALIGNMENT == 0 else flat.copy()).reshape(span.shape)

    def raw(self, name: str) -> memoryview:
        """The bytes of one tensor, mapped."""
        span = self.tensors[name]
        return memoryview(self._map)[span.begin : span.end]

    def release(self, name: str) -> None:
        """Let the system drop the pages of one tensor; pages shared with a neighbour are read again when needed."""
        span = self.tensors[name]
        if not hasattr(mmap, "MADV_DONTNEED") or span.begin == span.end:
            return
        start = span.begin - span.begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, span.end - start)

    def close(self) -> None:
        """Unmap, unless arrays still point into the mapping; then it goes when the last of them does."""
        with contextlib.suppress(BufferError):
            self._map.close()


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(
        f"{path} {what}.\nThe file was cut off or is not safetensors: fetch it again, or save it again."
    )


def _read_header(path: Path, data: mmap.mmap, size: int) -> tuple[dict[str, StoredSpan], dict[str, str]]:
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES or length > size - 8:
        _refuse(path, f"must hold its header of {length:,} bytes, and it has {size:,} bytes in all")
    text = data[8 : 8 + length]
    if text[:1] != b"{":
        _refuse(path, f"must begin its header with a brace, and it begins with {text[:8]!r}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                _refuse(path, f"must name every tensor once, and it lists {key} twice")
            found[key] = value
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} must have a header in JSON, and its header is not ({error}).\n"
            "The file was damaged or is not safetensors: fetch it again, or save it again."
        ) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "must hold text in __metadata__, and it does not")
    spans = {name: _span(path, name, entry, 8 + length) for name, entry in header.items()}
    ordered = dict(sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_cover(path, ordered, 8 + length, size)
    return ordered, metadata


def _span(path: Path, name: str, entry: Any, data_start: int) -> StoredSpan:
    """One entry of the header, with its fields' types and its byte count checked."""
    fields = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or entry.keys() != fields:
        _refuse(path, f"must give {name} a dtype, a shape and data_offsets, and its entry is {_short(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _refuse(path, f"must give {name} a dtype of the format, and it has {_short(dtype)}")
    if not _is_counts(shape) or len(shape) > MAX_DIMS:
        _refuse(path, f"must give {name} a shape of whole numbers, and it has {_short(shape)}")
    if not _is_counts(offsets) or len(offsets) != 2:
        _refuse(path, f"must give {name} two offsets, and it has {_short(offsets)}")
    begin, end = offsets
    bits = prod(shape) * DTYPE_BITS[dtype]
    if end < begin or bits != 8 * (end - begin):
        wanted = f"{(bits + 7) // 8:,}"
        _refuse(path, f"must store {name} {_short(shape)} {dtype} in {wanted} bytes, and it has {end - begin:,}")
    return StoredSpan(dtype, tuple(shape), data_start + begin, data_start + end)


def _is_counts(value: Any) -> bool:
    """True for a list of integers that are not negative and would fit a file (also: not true and false)."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _check_cover(path: Path, spans: dict[str, StoredSpan], data_start: int, size: int) -> None:
    """Refuse holes, overlaps, and a file longer or shorter than its tensors."""
    position = data_start
    for name, span in spans.items():
        if span.begin != position:
            what = "leaves a hole before" if span.begin > position else "overlaps"
            _refuse(path, f"must store tensors without holes or overlaps, and it {what} {name}")
        position = span.end
    if position != size:
        _refuse(path, f"must be {position:,} bytes long for its tensors, and it has {size:,}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
