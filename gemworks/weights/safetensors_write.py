"""Writing safetensors one tensor at a time: no more than one tensor is ever in memory.

Data starts on 64 bytes (the header is padded with spaces), and tensors whose size is a multiple of 64 come first, so
that every one of those can later be mapped without a copy. In the released shapes that is all of them. The others
follow, those of larger elements first.

Callers write into a partial path of atomic.py; nothing here renames.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemworks.weights.safetensors import ALIGNMENT, ARRAY_DTYPES, DTYPE_BITS

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# As the hub's own tools split: one file stays below what common file systems and mirrors take.
SHARD_BYTES = 5_000_000_000

# Called with (bytes done, bytes in all) after every tensor.
Progress = Callable[[int, int], None]


class TensorSource(NamedTuple):
    """A tensor to be written: published name, dtype (of ARRAY_DTYPES), shape, and a function that produces the array.

    `done` is called when the array has been written, so that a mapped original can be released.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    produce: Callable[[], np.ndarray]
    done: Callable[[], None] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def total_bytes(tensors: Iterable[TensorSource]) -> int:
    """Bytes of the tensors' data, without headers."""
    return sum(tensor.num_bytes for tensor in tensors)


def write_file(path: Path, tensors: Sequence[TensorSource], *, wrote: Callable[[int], None] | None = None) -> None:
    """Write one .safetensors file. `wrote` is called with the bytes of each tensor when it is written."""
    ordered = sorted(tensors, key=_rank)
    assert len({tensor.name for tensor in ordered}) == len(ordered), "a tensor name occurs twice"
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    position = 0
    for tensor in ordered:
        end = position + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in ordered:
            array = tensor.produce()
            assert array.shape == tensor.shape, f"{tensor.name}: {array.shape} is not {tensor.shape}"
            assert array.dtype == ARRAY_DTYPES[tensor.dtype], f"{tensor.name}: {array.dtype} is not {tensor.dtype}"
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array
            if tensor.done is not None:
                tensor.done()
            if wrote is not None:
                wrote(tensor.num_bytes)


def write_shards(
    directory: Path,
    tensors: Sequence[TensorSource],
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` (or one tensor) with their index."""
    total, done = total_bytes(tensors), 0

    def wrote(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    shards = _split(tensors, shard_bytes)
    if len(shards) == 1:
        write_file(directory / SINGLE_NAME, shards[0], wrote=wrote)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / name, shard, wrote=wrote)
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _rank(tensor: TensorSource) -> int:
    """Tensors of one rank keep their order: the two halves of a quantized matrix, which is made once, stay together."""
    return 0 if tensor.num_bytes % ALIGNMENT == 0 else 128 - DTYPE_BITS[tensor.dtype]


def _split(tensors: Sequence[TensorSource], shard_bytes: int) -> list[list[TensorSource]]:
    """Consecutive tensors in groups of at most `shard_bytes`; a larger tensor has a group of its own."""
    shards: list[list[TensorSource]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if tensor.num_bytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards
