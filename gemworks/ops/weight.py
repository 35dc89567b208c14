"""Quantized matrices: what each format means, and the two orders its numbers are stored in.

    format      codes                     scales                bytes a weight
    int4-b32    uint8 [F, D/2], -8..7     fp16 [F, D/32]        0.5625    (GGUF's Q4_0, bit for bit)
    int4        uint8 [F, D/2], -8..7     fp32 [F]              0.5
    int8-b32    int8  [F, D]              fp16 [F, D/32]        1.0625    (GGUF's Q8_0)
    int8        int8  [F, D]              fp32 [F]              1
    sfp8        uint8 [F, D]              fp32 [1]              1         (gemma.cpp's switched 8-bit float)
    bf16        uint16 [F, D]             fp32 [0]              2

A weight is code * scale, exactly, in fp32. Four-bit codes lie two a byte in blocks of 32 columns, as in Q4_0: byte i
holds column i in its low nibble and column i + 16 in its high one, each as value + 8.

`QuantWeight` is row-major and is what files and ops/xla speak. `PackedWeight` holds the same numbers in the order of
the CPU kernels (layout.py). Not here: how weights are rounded (gemworks/quant).
"""

from typing import Literal, get_args

import equinox as eqx
import jax
import ml_dtypes
import numpy as np

from gemworks.ops.kv import Array

# F output width (rows), D input width (columns)

Format = Literal["int4-b32", "int4", "int8-b32", "int8", "sfp8", "bf16"]
FORMATS: tuple[Format, ...] = get_args(Format)

BLOCK = 32  # columns that share a scale in the -b32 formats, and the unit in which four-bit codes are stored

SFP8_MAX = 1.875


class QuantWeight(eqx.Module):
    """A quantized matrix, row-major; see the table above for what `codes` and `scales` are."""

    codes: Array
    scales: Array
    format: Format = eqx.field(static=True)
    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def dtype(self) -> np.dtype:
        """The dtype it stands for: quantized checkpoints were trained in bf16."""
        return np.dtype(ml_dtypes.bfloat16)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.scales.nbytes)


class PackedWeight(eqx.Module):
    """A quantized matrix in the order of the CPU kernels: `data` is uint8, packed_bytes(format, F, D) long."""

    data: Array
    format: Format = eqx.field(static=True)
    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def dtype(self) -> np.dtype:
        """The dtype it stands for."""
        return np.dtype(ml_dtypes.bfloat16)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, padding included."""
        return int(self.data.nbytes)


Weight = jax.Array | QuantWeight | PackedWeight


def code_shapes(
    format: Format, F: int, D: int
) -> tuple[tuple[tuple[int, ...], np.dtype], tuple[tuple[int, ...], np.dtype]]:
    """Return ((shape, dtype) of the codes, (shape, dtype) of the scales) of a [F, D] matrix."""
    assert D % BLOCK == 0 or format == "bf16", f"{format} needs a multiple of {BLOCK} columns, got {D}"
    codes = {
        "int4-b32": ((F, D // 2), np.uint8),
        "int4": ((F, D // 2), np.uint8),
        "int8-b32": ((F, D), np.int8),
        "int8": ((F, D), np.int8),
        "sfp8": ((F, D), np.uint8),
        "bf16": ((F, D), np.uint16),
    }[format]
    if format.endswith("-b32"):
        scales = ((F, D // BLOCK), np.float16)
    else:
        scales = ((1 if format == "sfp8" else 0 if format == "bf16" else F,), np.float32)
    return (codes[0], np.dtype(codes[1])), (scales[0], np.dtype(scales[1]))


def quant_bytes(format: Format, F: int, D: int) -> int:
    """Return the bytes of codes and scales of a [F, D] matrix."""
    return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in code_shapes(format, F, D))
