"""What the codes of each format stand for, in numpy: nibbles, the 8-bit floats, and the way back to fp32.

The table of formats is in ops/weight.py. Two of them are GGUF's own blocks (int4-b32 is Q4_0, int8-b32 is Q8_0); the
8-bit float is gemma.cpp's (compression/types.h): one byte, bit 7 the sign, c the other seven bits,

    c >= 64        (1 + (c & 7) / 8) * 2^((c >> 3) - 15)       2^-7 .. 1.875     three bits of fraction
    1 <= c < 64    (1 + (c & 3) / 4) * 2^((c >> 2) - 23)       below 2^-7        two bits of fraction
    c == 0         0                                           0x80 is not written; it reads as 0

Not here: how weights are rounded (rtn.py, gptq.py), the order of the CPU kernels (ops/layout.py).
"""

from functools import cache

import ml_dtypes
import numpy as np

from gemworks.ops.weight import BLOCK, Format, QuantWeight

# F rows, D columns, n blocks

_HALF = BLOCK // 2

# Weights handled at once by everything in this package that goes over a whole matrix: 1 MiB of fp32, so that the
# temporaries stay in a 2 MiB L2 cache and are never worth counting. Any size gives the same numbers.
CHUNK_ELEMENTS = 1 << 18

# What the integer formats can hold: (lowest code, highest code).
CODE_RANGE: dict[Format, tuple[int, int]] = {
    "int4-b32": (-8, 7),
    "int4": (-8, 7),
    "int8-b32": (-127, 127),
    "int8": (-127, 127),
}


def row_chunks(F: int, D: int) -> list[slice]:
    """Return slices over F rows of D columns, each of about CHUNK_ELEMENTS weights."""
    step = max(1, CHUNK_ELEMENTS // max(D, 1))
    return [slice(at, min(F, at + step)) for at in range(0, F, step)]


def pack_nibbles(levels_FD: np.ndarray) -> np.ndarray:
    """Return codes [F, D/2] of levels 0..15 (value + 8), uint8.

    byte of a block    0        1              15
    holds            w0 w16   w1 w17   ...   w15 w31        (low nibble, high nibble)
    """
    F, D = levels_FD.shape
    halves = levels_FD.reshape(F, D // BLOCK, 2, _HALF)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(F, D // 2)


def unpack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Return levels [F, D], uint8 0..15, of codes [F, D/2]."""
    F = codes.shape[0]
    packed = codes.reshape(F, -1, 1, _HALF)
    return np.concatenate([packed & 15, packed >> 4], axis=2).reshape(F, -1)


@cache
def sfp8_values() -> np.ndarray:
    """Return the 256 values of the 8-bit float, fp32; each is also exact in bf16."""
    byte = np.arange(256)
    c = byte & 127
    large = (1 + (c & 7) / 8) * 2.0 ** ((c >> 3) - 15)
    small = (1 + (c & 3) / 4) * 2.0 ** ((c >> 2) - 23)
    magnitude = np.where(c >= 64, large, np.where(c > 0, small, 0.0))
    values = np.where((byte >= 128) & (c > 0), -magnitude, magnitude).astype(np.float32)
    values.setflags(write=False)
    return values


def dequantize(weight: QuantWeight) -> np.ndarray:
    """Return the matrix a quantized one stands for, fp32 [F, D]: code * scale, one product each. A new array."""
    F, D = weight.shape
    codes, scales = np.asarray(weight.codes), np.asarray(weight.scales)
    result = np.empty((F, D), np.float32)
    for rows in row_chunks(F, D):
        _decode(weight.format, codes[rows], scales[rows] if scales.shape[:1] == (F,) else scales, result[rows])
    return result


def _decode(format: Format, codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """Write the values of some rows; `scales` are those of the rows, or the one of the tensor."""
    if format == "bf16":
        out[...] = codes.view(ml_dtypes.bfloat16)
    elif format == "sfp8":
        np.multiply(sfp8_values()[codes], scales[0], out=out)
    else:
        if format.startswith("int4"):
            np.subtract(unpack_nibbles(codes), np.float32(8), out=out, dtype=np.float32)
        else:
            out[...] = codes
        blocks = out.reshape(len(out), -1, BLOCK) if format.endswith("-b32") else out
        np.multiply(blocks, scales.astype(np.float32)[..., None], out=blocks)
