"""GGUF's two block formats, as rounding: numbers in blocks of 32 to codes and scales, bit for bit as ggml does it.

Alone in a file without jax, because opening and writing GGUF files (weights/gguf_blocks.py) must not wait for it.
Weights must be finite: fp16 scales come out infinite where they are not, or where they are too large.
"""

import numpy as np

# n blocks


def q4_0_blocks(values_n32: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (levels uint8 [n, 32] of 0..15, scales fp16 [n]), bit for bit as ggml's quantize_row_q4_0_ref.

    d = -m / 8, m the signed weight of largest magnitude (the first of equals); level = trunc(w / d + 8.5), by the
    reciprocal of the unrounded d.
    """
    largest = np.abs(values_n32).argmax(axis=1)
    scale = np.take_along_axis(values_n32, largest[:, None], axis=1) / np.float32(-8)
    levels = values_n32 * _reciprocal(scale)
    levels += np.float32(8.5)
    return np.minimum(levels, np.float32(15), out=levels).astype(np.uint8), scale[:, 0].astype(np.float16)


def q8_0_blocks(values_n32: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes int8 [n, 32], scales fp16 [n]), bit for bit as ggml's quantize_row_q8_0_ref.

    d = max|w| / 127; code = w / d by the reciprocal of the unrounded d, halves away from zero.
    """
    scale = np.abs(values_n32).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values_n32 * _reciprocal(scale)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    # floor(x + 0.5) would round 0.49999997 up, because the sum does.
    whole += magnitude - whole >= 0.5
    return np.copysign(whole, scaled, out=whole).astype(np.int8), scale[:, 0].astype(np.float16)


def _reciprocal(scale: np.ndarray) -> np.ndarray:
    """1 / scale in fp32; 0 where the scale is 0 or so small that there is none (its fp16 is 0, and so is the block)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isinf(inverse), np.float32(0), inverse)
