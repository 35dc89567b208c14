"""Rounding against the gguf package's own quantizer, which is ggml's in numpy."""

import numpy as np
import pytest

from gemworks.quant.formats import dequantize
from gemworks.quant.rtn import quantize

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")


@pytest.mark.parametrize(("format", "kind"), [("int4-b32", "Q4_0"), ("int8-b32", "Q8_0")])
@pytest.mark.parametrize("spread", [1e-6, 0.02, 3.0, 1e4])
def test_codes_and_scales_are_the_packages(format, kind, spread):
    rng = np.random.default_rng(7)
    weight = (rng.standard_normal((512, 640)) * spread).astype(np.float32)
    weight[0] = 0
    weight[1] = spread  # all equal, and below: the largest magnitude twice with both signs
    weight[2] = np.where(np.arange(640) % 2, spread, -spread)
    weight[3:99] = weight[3:99].astype(np.float16)  # coarse values make ties
    weight[100:200] = np.round(weight[100:200] / np.float32(spread) * 4) * np.float32(spread / 4)
    kind = gguf.GGMLQuantizationType[kind]
    theirs = gguf.quants.quantize(weight, kind)
    ours = quantize(weight, format)
    blocks = theirs.reshape(512, 640 // 32, -1)
    assert ours.scales.tobytes() == np.ascontiguousarray(blocks[:, :, :2]).tobytes()
    assert ours.codes.tobytes() == np.ascontiguousarray(blocks[:, :, 2:]).tobytes()
    np.testing.assert_array_equal(dequantize(ours), gguf.quants.dequantize(theirs, kind))
