"""Blocks against ggml's own Python package, bit for bit."""

import numpy as np
import pytest

from gemworks.weights.gguf_blocks import TYPES, dequantize, quantize

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
quants = gguf.quants


def kind_of(name: str):
    return gguf.GGMLQuantizationType[name]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and (a.view(np.uint32) == b.view(np.uint32)).all()


def finite_scales(blocks: np.ndarray, name: str) -> np.ndarray:
    """Keep the half-precision scales finite; every other bit is free."""
    halves = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(name, (0,))
    for place in halves:
        blocks[:, place + 1] &= 0xBF  # exponent below 16: magnitude below 2
    return blocks


@pytest.mark.parametrize("name", sorted(TYPES))
@pytest.mark.parametrize("seed", range(3))
def test_random_blocks_decode_alike(name, seed):
    kind = TYPES[name]
    assert gguf.GGML_QUANT_SIZES[kind_of(name)] == (kind.elements, kind.block_bytes) and kind_of(name) == kind.code
    rows, blocks = 33, 8 if kind.elements > 1 else 256
    stored = np.random.default_rng(seed).integers(0, 256, (rows * blocks, kind.block_bytes), dtype=np.uint8)
    if kind.elements > 1:
        finite_scales(stored, name)
    stored = stored.reshape(rows, -1)
    wanted = quants.dequantize(stored, kind_of(name)).astype(np.float32)
    assert same_bits(dequantize(stored, name, wanted.shape), wanted)


VALUES = {
    "normal": lambda rng: rng.standard_normal((64, 512)),
    "tiny": lambda rng: rng.standard_normal((64, 512)) * 1e-7,
    "large": lambda rng: rng.standard_normal((64, 512)) * 1e3,
    "wide": lambda rng: np.clip(rng.standard_normal((64, 512)) * np.exp(rng.standard_normal((64, 512)) * 3), -6e4, 6e4),
    "ties": lambda rng: rng.integers(-8, 9, (64, 512)) / 2,
    "sparse": lambda rng: rng.standard_normal((64, 512)) * (rng.random((64, 512)) < 0.02),
    "zeros": lambda rng: np.zeros((64, 512)),
}


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("values", sorted(VALUES))
def test_values_encode_alike(name, values):
    array = VALUES[values](np.random.default_rng(5)).astype(np.float32)
    wanted = quants.quantize(array, kind_of(name))
    assert (quantize(array, name) == wanted.view(np.uint8).reshape(64, -1)).all()
