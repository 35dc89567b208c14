"""Quantized matrices in a safetensors directory: what config.json says of them, and the pairs of tensors they are.

    config.json          "gemworks_quantization": {
                             "version": 1, "formats": {"model.layers.0.mlp.up_proj.weight": "int4-b32", ...}}
    model.safetensors    model.layers.0.mlp.up_proj.weight          the codes, U8 or I8
                         model.layers.0.mlp.up_proj.weight_scale    the scales, F16 or F32

Codes and scales are those of ops/weight.py, byte for byte. Matrices in bf16 are plain tensors and are not listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gemworks.errors import CheckpointError
from gemworks.weights.checkpoint import StoredTensor
from gemworks.weights.safetensors_write import TensorSource

if TYPE_CHECKING:
    from gemworks.ops.weight import Format, QuantWeight

KEY = "gemworks_quantization"
VERSION = 1
SCALE_SUFFIX = "_scale"

# How the header of a safetensors file names the dtypes of codes and scales.
HEADER_DTYPES = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32"}

_SHOWN = 10


class QuantSource(NamedTuple):
    """Where a quantized matrix to be saved comes from: its format, and a function that produces it.

    `done` is called when the matrix is on its way to the disk and will not be used again.
    """

    format: Format
    produce: Callable[[], QuantWeight]
    done: Callable[[], None] | None = None


def formats_from_json(config: Mapping[str, Any], where: Path) -> dict[str, Format]:
    """Return published name -> format of the quantized matrices; {} for a model that has none.

    Raises CheckpointError for a version that is not read and for what is not such a table.
    """
    block = config.get(KEY)
    if block is None:
        return {}
    from gemworks.ops.weight import FORMATS  # brings jax, which listing models must not wait for

    version = block.get("version") if isinstance(block, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"{where}: {KEY} must be of version {VERSION}, got {str(version)[:40]}.\n"
            "A newer Gemworks wrote it: update, or quantize the model again with this one."
        )
    formats = block.get("formats")
    known = [one for one in FORMATS if one != "bf16"]
    if not isinstance(formats, dict):
        raise CheckpointError(f"{where}: {KEY} must hold formats by tensor, and it does not.\nFetch config.json again.")
    for name, format in formats.items():
        if format not in known:
            raise CheckpointError(
                f"{where}: {KEY} must give {name} one of {', '.join(known)}, got {str(format)[:40]}.\n"
                "A newer Gemworks wrote it: update, or quantize the model again with this one."
            )
    return formats


def json_from_formats(formats: Mapping[str, Format]) -> dict[str, Any]:
    """Return the fields to add to config.json for published name -> format; none where nothing is quantized."""
    return {KEY: {"version": VERSION, "formats": dict(formats)}} if formats else {}


def join_pairs(stored: Sequence[StoredTensor], formats: Mapping[str, Format], where: Path) -> list[StoredTensor]:
    """Return the tensors with every pair of codes and scales as one: the matrix's shape, its format as dtype.

    Raises one CheckpointError of every pair that is not whole or not of the format's shapes and dtypes.
    """
    if not formats:
        return list(stored)
    found = {tensor.published: tensor for tensor in stored}
    problems = [f"{name}  is listed in config.json, and not stored" for name in formats if name not in found]
    joined = {}
    for name, format in formats.items():
        if (codes := found.get(name)) is not None:
            scales = found.pop(name + SCALE_SUFFIX, None)
            problem, joined[name] = _join(format, codes, scales)
            problems += [problem] if problem else []
    if problems:
        more = [f"  ... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise CheckpointError(
            "\n".join(
                [
                    f"{where}: {len(problems)} quantized "
                    f"{'tensor is' if len(problems) == 1 else 'tensors are'} not what config.json says.",
                    *(f"  {problem}" for problem in problems[:_SHOWN]),
                    *more,
                    "Files of different saves were mixed, or the model was fetched in part: fetch it again.",
                ]
            )
        )
    return [joined.get(name, tensor) for name, tensor in found.items()]


def _join(format: Format, codes: StoredTensor, scales: StoredTensor | None) -> tuple[str, StoredTensor]:
    """(what is wrong or "", the pair as one tensor)."""
    from gemworks.ops.weight import BLOCK, code_shapes

    if scales is None:
        return f"{codes.published}{SCALE_SUFFIX}  is missing", codes
    width = codes.shape[-1] * (2 if format.startswith("int4") else 1) if len(codes.shape) == 2 else 0
    if width == 0 or width % BLOCK:
        return f"{codes.published}  has {list(codes.shape)}, wants rows of blocks of {BLOCK}", codes
    shape = (codes.shape[0], width)
    for tensor, (wanted_shape, wanted_dtype) in zip((codes, scales), code_shapes(format, *shape), strict=True):
        wanted = HEADER_DTYPES[np.dtype(wanted_dtype).name]
        if (tensor.shape, tensor.dtype) != (wanted_shape, wanted):
            problem = f"{list(tensor.shape)} {tensor.dtype}, wants {list(wanted_shape)} {wanted} as {format}"
            return f"{tensor.published}  has {problem}", codes
    return "", replace(codes, shape=shape, dtype=format, num_bytes=codes.num_bytes + scales.num_bytes)


def pair_sources(published: str, shape: tuple[int, ...], source: QuantSource) -> list[TensorSource]:
    """Return the codes and the scales of a matrix as two tensors to be written; it is produced once.

    What the first of the two does not take is kept until the second does. The codes come first, because scales are
    small where a shard ends between them.
    """
    from gemworks.ops.weight import code_shapes

    F, D = shape
    left: dict[int, np.ndarray] = {}

    def half(index: int) -> np.ndarray:
        if not left:
            weight = source.produce()
            assert (weight.format, weight.shape) == (source.format, (F, D)), f"{published}: {weight.format} came"
            left.update(enumerate((np.asarray(weight.codes), np.asarray(weight.scales))))
        array = left.pop(index)
        if not left and source.done is not None:
            source.done()
        return array

    names = (published, published + SCALE_SUFFIX)
    return [
        TensorSource(name, HEADER_DTYPES[dtype.name], half_shape, lambda index=index: half(index))
        for index, (name, (half_shape, dtype)) in enumerate(zip(names, code_shapes(source.format, F, D), strict=True))
    ]


def gguf_bytes(weight: QuantWeight) -> Iterator[memoryview]:
    """Yield the blocks of an int4-b32 or int8-b32 matrix as GGUF's Q4_0 or Q8_0, some rows at a time."""
    codes, scales = np.asarray(weight.codes), np.asarray(weight.scales)
    F, blocks = scales.shape
    code_bytes = codes.shape[1] * codes.itemsize // blocks
    step = max(1, (1 << 20) // codes.shape[1])
    for at in range(0, F, step):
        rows = slice(at, min(F, at + step))
        stored = np.empty((rows.stop - at, blocks, 2 + code_bytes), np.uint8)
        stored[:, :, :2] = np.ascontiguousarray(scales[rows])[..., None].view(np.uint8)
        stored[:, :, 2:] = np.ascontiguousarray(codes[rows]).view(np.uint8).reshape(-1, blocks, code_bytes)
        yield stored.reshape(-1).data
