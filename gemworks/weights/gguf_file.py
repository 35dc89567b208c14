"""The GGUF container: header, metadata and tensor table of a mapped file. What they mean is gguf.py's business.

    "GGUF" | u32 version | u64 number of tensors | u64 number of keys
    keys      string key | u32 type | value                           (string: u64 length, UTF-8 bytes)
    tensors   string name | u32 n | u64 dimension[n], innermost first | u32 type | u64 offset into the data
    padding to `general.alignment` (32), then the data, every tensor aligned

Nothing in the file is believed before it is checked: every count, length, product of dimensions and offset is
compared with the bytes that are left before anything is made from it. Arrays, of numbers and of strings, are views of
the mapping (a string array keeps one u64 per string, and a string costs the file at least that), so a file with
hostile sizes cannot make us allocate more than the file itself. Each complaint is one CheckpointError.

Not here: version 1 (32-bit counts, replaced in 2023), big-endian files, and types that gguf_blocks cannot decode.
"""

import math
import mmap
import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np

from gemworks.errors import CheckpointError, StorageError
from gemworks.weights.gguf_blocks import TYPE_OF_CODE, BlockType

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32

# Limits on what has no honest use, so that small entries cannot be multiplied into large Python objects. The largest
# Gemma 3 (27B with its vision half) has 1,247 tensors and under 100 keys; no known writer nests arrays.
MAX_ENTRIES = 16_384
MAX_NAME_BYTES = 65_535
MAX_STRING_BYTES = 1 << 26  # a whole tokenizer.json, which some converters put into a key, has half of that
MAX_DIMENSIONS = 4
MAX_INNER_ARRAYS = 1_024
MAX_DEPTH = 4


class ValueType(IntEnum):
    """The type number before a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMBER_DTYPES = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

# Names of types that exist and are not read, so that the refusal can name them.
_OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


_BROKEN = "\nThe file is damaged or was not fetched whole: fetch it again."

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A row of the tensor table. `shape` is outermost first ([out, in]); `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    offset: int
    num_bytes: int


class StringArray(Sequence[str]):
    """An array of strings that stays in the file; a string is decoded each time it is asked for.

    `starts[i]` is where the bytes of string i begin in `data`; its u64 length lies in the eight bytes before.
    """

    def __init__(self, data: mmap.mmap, starts: Sequence[int], where: str):
        self._data = data
        self._starts = starts
        self._where = where

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "StringArray": ...
    def __getitem__(self, index: int | slice) -> "str | StringArray":
        if isinstance(index, slice):
            return StringArray(self._data, self._starts[index], self._where)
        start = self._starts[index]
        length = _U64.unpack_from(self._data, start - 8)[0]
        try:
            return self._data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._where}[{index}] must be UTF-8, and {error.reason}.{_BROKEN}") from error

    def find(self, text: str) -> int | None:
        """Index of the first string equal to `text`, or None. Searches the bytes of the file; decodes nothing."""
        if not self._starts:
            return None
        wanted = _U64.pack(len(text.encode())) + text.encode()
        at, end = self._starts[0] - 8, self._starts[-1] - 8 + len(wanted)
        while (at := self._data.find(wanted, at, end)) >= 0:
            index = bisect_left(self._starts, at + 8)
            if index < len(self) and self._starts[index] == at + 8:  # else inside another string
                return index
            at += 1
        return None


class GGUFFile:
    """A mapped GGUF file whose tables have been read and checked.

    `metadata` holds int, float, bool and str values, StringArray, numpy arrays of numbers, or lists of those. A
    float32 is given as the shortest decimal that names it: 1e-06, not 9.99999997e-07. Views of the file (arrays,
    `bytes_of`) keep the mapping alive after `close`.
    """

    def __init__(self, path: Path):
        """Map `path` and read its tables. Raises StorageError if it cannot be read, CheckpointError if damaged."""
        self.path = path
        mapped = _map_file(path)
        self._map: mmap.mmap | None = mapped
        reader = _Reader(path, mapped)
        self.version, num_tensors, num_keys = reader.header()
        self.metadata = reader.metadata(num_keys)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise reader.error(f"general.alignment must be a power of two, got {alignment!r}.")
        self.tensors = reader.tensor_table(num_tensors, alignment)
        self._data: memoryview | None = reader.data

    def bytes_of(self, name: str) -> memoryview:
        """The stored bytes of one tensor, a read-only view of the file."""
        assert self._data is not None, f"{self.path.name} is closed"
        info = self.tensors[name]
        return self._data[info.offset : info.offset + info.num_bytes]

    def release(self, name: str) -> None:
        """Tell the system that the pages of a tensor are not needed any more; they are read again if they are."""
        info = self.tensors[name]
        first = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (info.offset + info.num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if self._map is not None and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last view of it does."""
        self._data = None
        self._map = None


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < len(MAGIC):
                raise CheckpointError(f"{path}: must begin with the four bytes GGUF, and has {file.tell()}.{_BROKEN}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


class _Reader:
    """Walks the tables from front to back. `pos` never passes the end of `data`."""

    def __init__(self, path: Path, mapped: mmap.mmap):
        self.path = path
        self.mapped = mapped
        self.data = memoryview(mapped)
        self.pos = 0
        self.num_inner_arrays = 0

    def error(self, text: str, hint: str = _BROKEN) -> CheckpointError:
        return CheckpointError(f"{self.path}: {text}{hint}")

    def skip(self, num_bytes: int, what: str) -> int:
        """Move past `num_bytes` of `what`, which must be there; return where it begins."""
        start, left = self.pos, len(self.data) - self.pos
        if num_bytes > left:
            raise self.error(f"{what} needs {num_bytes:,} bytes at offset {start:,}, and the file ends after {left:,}.")
        self.pos += num_bytes
        return start

    def u32(self, what: str) -> int:
        return _U32.unpack_from(self.data, self.skip(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.data, self.skip(8, what))[0]

    def string(self, what: str, limit: int) -> str:
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise self.error(f"{what} must be at most {limit:,} bytes long, got {length:,}.")
        start = self.skip(length, what)
        try:
            return str(self.data[start : self.pos], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} must be UTF-8, and {error.reason}.") from error

    def header(self) -> tuple[int, int, int]:
        """(version, number of tensors, number of keys)."""
        magic = bytes(self.data[self.skip(4, "the magic") : 4])
        if magic != MAGIC:
            raise self.error(f"must begin with the four bytes GGUF, got {magic!r}.", "\nThis is not a GGUF file.")
        version = self.u32("the version")
        if version == 1:
            raise self.error("GGUF version 1 is not read, only 2 and 3.", "\nConvert it with a current llama.cpp.")
        if version & 0xFFFF == 0 and version:
            raise self.error("is big-endian, and only little-endian GGUF is read.", "\nFetch the little-endian file.")
        if version not in (2, 3):
            raise self.error(f"GGUF version {version} is not known, only 2 and 3.")
        counts = []
        for what, smallest in (("tensors", 32), ("keys", 14)):  # bytes of the smallest possible entry
            count = self.u64(f"the number of {what}")
            if count > MAX_ENTRIES or count * smallest > len(self.data):
                raise self.error(f"{count:,} {what} cannot be in a file of {len(self.data):,} bytes.")
            counts.append(count)
        return version, counts[0], counts[1]

    def metadata(self, num_keys: int) -> dict[str, Any]:
        """All keys and their values, in file order."""
        values: dict[str, Any] = {}
        for index in range(num_keys):
            key = self.string(f"key {index}", MAX_NAME_BYTES)
            if not key or key in values:
                raise self.error(f"key {key!r} is there twice." if key else f"key {index} has no name.")
            values[key] = self.value(self.value_type(key), key, 0)
        return values

    def value_type(self, key: str) -> ValueType:
        number = self.u32(f"the type of {key}")
        if number > max(ValueType):
            raise self.error(f"{key} has value type {number}; types are 0 to {max(ValueType)}.")
        return ValueType(number)

    def value(self, kind: ValueType, key: str, depth: int) -> Any:
        if kind is ValueType.STRING:
            return self.string(key, MAX_STRING_BYTES)
        if kind is ValueType.ARRAY:
            return self.array(key, depth)
        dtype = NUMBER_DTYPES[kind]
        number = np.frombuffer(self.data, dtype, 1, self.skip(dtype.itemsize, key))[0]
        if kind is ValueType.BOOL:
            return bool(self.checked_bools(number, key))
        return float(str(number)) if kind is ValueType.FLOAT32 else number.item()

    def checked_bools(self, numbers: np.ndarray, key: str) -> np.ndarray:
        if np.any(numbers > 1):
            raise self.error(f"{key} must be true (1) or false (0), got {np.max(numbers)}.")
        return numbers

    def array(self, key: str, depth: int) -> Any:
        """Numbers as a view, strings as a StringArray, arrays as a list."""
        kind = self.value_type(key)
        count = self.u64(f"the length of {key}")
        if kind is ValueType.STRING:
            return self.string_array(key, count)
        if kind is ValueType.ARRAY:
            self.num_inner_arrays += count
            if depth == MAX_DEPTH or self.num_inner_arrays > MAX_INNER_ARRAYS:
                raise self.error(f"{key} nests arrays {depth + 1} deep and {self.num_inner_arrays:,} in number.")
            return [self.array(key, depth + 1) for _ in range(count)]
        dtype = NUMBER_DTYPES[kind]
        start = self.skip(count * dtype.itemsize, key)
        numbers = np.frombuffer(self.data, dtype, count, start) if count else np.empty(0, dtype)
        return self.checked_bools(numbers, key).view(bool) if kind is ValueType.BOOL else numbers

    def string_array(self, key: str, count: int) -> StringArray:
        """Find where the strings begin: a walk, since each length says where the next one is."""
        data, size, pos = self.data, len(self.data), self.pos
        if count * 8 > size - pos:
            self.skip(count * 8, f"{key} (its {count:,} lengths alone)")
        starts = array("Q")
        append, read = starts.append, _U64.unpack_from
        for _ in range(count):
            if pos + 8 > size:
                break
            append(pos + 8)
            pos += 8 + read(data, pos)[0]
        if len(starts) < count or pos > size:
            raise self.error(f"{key} holds {count:,} strings, and the file ends inside number {len(starts):,}.")
        self.pos = pos
        return StringArray(self.mapped, starts, f"{self.path}: {key}")

    def tensor_table(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        """The table, with offsets made absolute. Tensors lie inside the file and do not overlap."""
        rows = [self.tensor_row(index) for index in range(count)]
        data_start = -(-self.pos // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in rows:
            num_bytes = kind.row_bytes(shape[-1]) * math.prod(shape[:-1])
            info = TensorInfo(name, shape, kind, data_start + offset, num_bytes)
            if offset % alignment:
                raise self.error(f"tensor {name} must begin at a multiple of {alignment}, got offset {offset:,}.")
            if info.offset + num_bytes > len(self.data):
                raise self.error(
                    f"tensor {name} {list(shape)} {kind.name} needs {num_bytes:,} bytes at offset {info.offset:,}, "
                    f"and the file has {len(self.data):,} bytes."
                )
            if name in tensors:
                raise self.error(f"tensor {name} is there twice.")
            tensors[name] = info
        self.check_overlap(tensors)
        return tensors

    def tensor_row(self, index: int) -> tuple[str, tuple[int, ...], BlockType, int]:
        """(name, shape outermost first, type, offset into the data); the row's own numbers are plausible."""
        name = self.string(f"the name of tensor {index}", MAX_NAME_BYTES)
        num_dimensions = self.u32(f"the number of dimensions of {name}")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self.error(f"tensor {name} must have 1 to {MAX_DIMENSIONS} dimensions, got {num_dimensions}.")
        shape = tuple(self.u64(f"dimension {axis} of {name}") for axis in range(num_dimensions))[::-1]
        code = self.u32(f"the type of {name}")
        kind = TYPE_OF_CODE.get(code)
        if kind is None:
            label = _OTHER_TYPES.get(code, "an unknown type")
            hint = f"\nReadable are {', '.join(TYPE_OF_CODE[code].name for code in sorted(TYPE_OF_CODE))}."
            raise self.error(f"tensor {name} is stored as {label} (type {code}), which is not read.", hint)
        if 0 in shape or shape[-1] % kind.elements:
            raise self.error(f"tensor {name} {list(shape)} must have whole blocks of {kind.elements} ({kind.name}).")
        return name, shape, kind, self.u64(f"the offset of {name}")

    def check_overlap(self, tensors: dict[str, TensorInfo]) -> None:
        in_file_order = sorted(tensors.values(), key=lambda info: info.offset)
        for before, after in pairwise(in_file_order):
            if before.offset + before.num_bytes > after.offset:
                raise self.error(f"tensors {before.name} and {after.name} overlap.")
