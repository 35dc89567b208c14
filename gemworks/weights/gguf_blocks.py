"""GGUF tensor storage to float32 and back, in numpy.

A tensor is stored row by row; a row is cut along the input axis into blocks, each with its own scale. Every block
is little-endian; `f16` is an IEEE half. b[i..j] are the block's bytes, w[k] its weights.

    type   weights  bytes  layout                                            weight
    F32         1      4
    F16         1      2
    BF16        1      2   upper half of a float32
    Q8_0       32     34   f16 d | int8 q[32]                                d * q
    Q4_0       32     18   f16 d | q[16]                                     d * (q - 8)
    Q4_1       32     20   f16 d | f16 m | q[16]                             d * q + m
    Q5_0       32     22   f16 d | h[4] | q[16]                              d * (q - 16)
    Q5_1       32     24   f16 d | f16 m | h[4] | q[16]                      d * q + m
    Q4_K      256    144   f16 d | f16 m | s[12] | q[128]                    d * scale * q - m * minimum
    Q5_K      256    176   f16 d | f16 m | s[12] | h[32] | q[128]            d * scale * q - m * minimum
    Q6_K      256    210   q[128] | h[64] | int8 scale[16] | f16 d           d * scale * (q - 32)

How the bits of q, h and s are packed is drawn at each function. Q4_1, Q5_0 and Q5_1 are here because llama.cpp's
quantizer falls back to them where a row is no multiple of 256: 270M (rows of 640) and 1B (1152) stored as "Q4_K_M"
are mostly Q5_0.

Products are taken in float32 in the order of ggml's scalar code, so results equal it bit for bit
(tests/oracle/gguf/test_blocks.py). Not here: Q2_K, Q3_K and the IQ and TQ families; they are refused by gguf.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gemworks.quant.blocks import q4_0_blocks, q8_0_blocks


class BlockType(NamedTuple):
    """How a ggml type is stored: its number in the file, weights in a block, and bytes of a block."""

    name: str
    code: int
    elements: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` weights, which must be a multiple of the block."""
        assert columns % self.elements == 0, f"{columns} columns are not whole {self.name} blocks"
        return columns // self.elements * self.block_bytes


TYPES = {
    kind.name: kind
    for kind in (
        BlockType("F32", 0, 1, 4),
        BlockType("F16", 1, 1, 2),
        BlockType("Q4_0", 2, 32, 18),
        BlockType("Q4_1", 3, 32, 20),
        BlockType("Q5_0", 6, 32, 22),
        BlockType("Q5_1", 7, 32, 24),
        BlockType("Q8_0", 8, 32, 34),
        BlockType("Q4_K", 12, 256, 144),
        BlockType("Q5_K", 13, 256, 176),
        BlockType("Q6_K", 14, 256, 210),
        BlockType("BF16", 30, 1, 2),
    )
}
TYPE_OF_CODE = {kind.code: kind for kind in TYPES.values()}

# Largest magnitude each lossy type can hold: the scale is a half, whose largest number is 65504.
LARGEST = {"F16": 65_504.0, "Q8_0": 65_504.0 * 127, "Q4_0": 65_504.0 * 8}

# Weights handled at once: 1 MiB of float32, so that the temporaries (about five times that) stay in cache and the
# peak is the result plus a few MiB. Any size gives the same numbers.
CHUNK_ELEMENTS = 1 << 18


def dequantize(stored: memoryview | bytes | np.ndarray, type_name: str, shape: Sequence[int]) -> np.ndarray:
    """Return a new float32 array of `shape` from the stored bytes of one tensor of `type_name`.

    `stored` must have exactly the bytes that shape needs. Memory is the result plus a few MiB. Scales that are not
    finite give weights that are not finite, without a warning.
    """
    kind = TYPES[type_name]
    blocks = np.frombuffer(stored, np.uint8).reshape(-1, kind.block_bytes)
    result = np.empty((len(blocks), kind.elements), np.float32)
    assert result.size == int(np.prod(shape)), f"{len(blocks)} blocks of {type_name} are not {tuple(shape)}"
    decode = _DECODERS[type_name]
    step = CHUNK_ELEMENTS // kind.elements
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), step):
            decode(blocks[first : first + step], result[first : first + step])
    return result.reshape(tuple(shape))


def quantize(values: np.ndarray, type_name: str) -> np.ndarray:
    """Return the stored bytes, uint8 [rows, row bytes], of float32 `values` [rows, columns].

    F32, F16, BF16, Q8_0 and Q4_0 only, bit for bit as ggml's reference quantizer. Columns must be whole blocks and
    magnitudes at most LARGEST[type_name]; NaN is kept by F32 and BF16 and must not reach the others.
    """
    kind = TYPES[type_name]
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    stored = np.empty((rows, kind.row_bytes(columns)), np.uint8)
    flat_values, flat_stored = values.reshape(-1, kind.elements), stored.reshape(-1, kind.block_bytes)
    encode = _ENCODERS[type_name]
    step = CHUNK_ELEMENTS // kind.elements
    for first in range(0, len(flat_values), step):
        encode(flat_values[first : first + step], flat_stored[first : first + step])
    return stored


def _halves(blocks: np.ndarray, first: int, count: int = 1) -> np.ndarray:
    """`count` f16 values from byte `first` of every block, as float32 [blocks, count]."""
    return blocks[:, first : first + 2 * count].view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray, out: np.ndarray) -> None:
    """Sixteen bytes to 32 weights, halves interleaved.

    byte      0        1              15
    holds  w0 w16   w1 w17   ...   w15 w31        (low nibble, high nibble)
    """
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Four bytes to [blocks, 32] of 0 or 16: bit k of the little-endian word belongs to w[k]."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _decode_f32(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:] = blocks.view("<f4")


def _decode_f16(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:] = blocks.view("<f2")


def _decode_bf16(blocks: np.ndarray, out: np.ndarray) -> None:
    np.left_shift(blocks.view("<u2"), np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)


def _decode_q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _halves(blocks, 0), out=out)


def _decode_q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= np.float32(8)
    out *= _halves(blocks, 0)


def _decode_q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _halves(blocks, 0)
    out += _halves(blocks, 2)


def _decode_q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    _nibbles(blocks[:, 6:], out)
    out += _fifth_bits(blocks[:, 2:6])
    out -= np.float32(16)
    out *= _halves(blocks, 0)


def _decode_q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    _nibbles(blocks[:, 8:], out)
    out += _fifth_bits(blocks[:, 4:8])
    out *= _halves(blocks, 0)
    out += _halves(blocks, 2)


def _scales_and_minimums(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twelve bytes to eight 6-bit scales and eight 6-bit minimums, each [blocks, 8] float32.

    byte         bits 7 6        bits 5 4 3 2 1 0
    s[0..3]      high of scale 4..7    scale 0..3
    s[4..7]      high of min 4..7      min 0..3
    s[8..11]     low nibble: low four bits of scale 4..7; high nibble: of min 4..7
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6 << 4)), axis=1)
    minimums = np.concatenate((second & 63, (third >> 4) | (second >> 6 << 4)), axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _decode_k(blocks: np.ndarray, out: np.ndarray, packed: np.ndarray) -> None:
    """Shared by Q4_K and Q5_K: eight sub-blocks of 32 weights; `out` holds fifth bits already, or zeros.

    q bytes      0..31     32..63    64..95    96..127
    low nibble   sub 0     sub 2     sub 4     sub 6
    high nibble  sub 1     sub 3     sub 5     sub 7
    """
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    weights = out.reshape(-1, 4, 2, 32)
    quarters = packed.reshape(-1, 4, 32)
    weights[:, :, 0] += quarters & 15
    weights[:, :, 1] += quarters >> 4
    weights = out.reshape(-1, 8, 32)
    weights *= (_halves(blocks, 0) * scales)[:, :, None]
    weights -= (_halves(blocks, 2) * minimums)[:, :, None]


def _decode_q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:] = 0
    _decode_k(blocks, out, blocks[:, 16:])


def _decode_q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Fifth bits: bit s of h[l] belongs to weight l of sub-block s."""
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]
    out.reshape(-1, 8, 32)[:] = (high & 1) << 4
    _decode_k(blocks, out, blocks[:, 48:])


def _decode_q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Two halves of 128 weights, each four runs of 32; one int8 scale for 16 weights.

    In a half (64 bytes of q, 32 bytes of h), l = 0..31:
    weight      l              32 + l         64 + l         96 + l
    low four    q[l] low       q[32+l] low    q[l] high      q[32+l] high
    high two    h[l] bits 0-1  bits 2-3       bits 4-5       bits 6-7
    """
    low = blocks[:, :128].reshape(-1, 2, 1, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    pairs = (high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    weights = out.reshape(-1, 2, 4, 32)
    weights[:] = nibbles | (pairs << 4)
    weights -= np.float32(32)
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8)
    sixteens = out.reshape(-1, 16, 16)
    sixteens *= scales[:, :, None]


_DECODERS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "F32": _decode_f32,
    "F16": _decode_f16,
    "BF16": _decode_bf16,
    "Q8_0": _decode_q8_0,
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
    "Q5_0": _decode_q5_0,
    "Q5_1": _decode_q5_1,
    "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k,
    "Q6_K": _decode_q6_k,
}


def _encode_f32(values: np.ndarray, out: np.ndarray) -> None:
    out[:] = values.view(np.uint8)


def _encode_f16(values: np.ndarray, out: np.ndarray) -> None:
    out[:] = values.astype("<f2").view(np.uint8)


def _encode_bf16(values: np.ndarray, out: np.ndarray) -> None:
    """Round to nearest, ties to even; NaN keeps its upper half with the quiet bit set."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    is_nan = (bits & 0x7FFF_FFFF) > 0x7F80_0000
    out[:] = np.where(is_nan, (bits >> 16) | 64, rounded).astype("<u2").view(np.uint8)


def _encode_q8_0(values: np.ndarray, out: np.ndarray) -> None:
    codes, scales = q8_0_blocks(values)
    out[:, :2] = scales[:, None].view(np.uint8)
    out[:, 2:] = codes.view(np.uint8)


def _encode_q4_0(values: np.ndarray, out: np.ndarray) -> None:
    q, scales = q4_0_blocks(values)
    out[:, :2] = scales[:, None].view(np.uint8)
    out[:, 2:] = q[:, :16] | (q[:, 16:] << 4)


_ENCODERS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "F32": _encode_f32,
    "F16": _encode_f16,
    "BF16": _encode_bf16,
    "Q8_0": _encode_q8_0,
    "Q4_0": _encode_q4_0,
}
