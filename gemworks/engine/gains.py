"""The factor that DoRA gives every row of a matrix: m / |W + BA|, computed once, when an adapter is loaded.

W is the matrix as it is served: of a quantized one what its codes stand for. A few rows at a time, in numpy: 1B's
matrices take about a second.
"""

from typing import Any

import jax
import numpy as np

from gemworks.model.gemma3 import Gemma3
from gemworks.model.lora import Target
from gemworks.ops import layout
from gemworks.ops.weight import PackedWeight, QuantWeight
from gemworks.quant.formats import dequantize, row_chunks
from gemworks.weights.adapter import LoraAdapter

# F output width, D input width


def row_gains(model: Gemma3, adapter: LoraAdapter) -> dict[tuple[int, Target], np.ndarray]:
    """Return gain_F by (layer, target), fp32; nothing for an adapter that is not DoRA's."""
    gains = {}
    for (layer, target), delta in adapter.deltas.items():
        if delta.magnitude_F is None:
            continue
        block = model.layers[layer]
        weight_FD = _floats(getattr(block.attn if hasattr(block.attn, target) else block.ffw, target).weight)
        lengths_F = np.empty(len(weight_FD), np.float32)
        for rows in row_chunks(*weight_FD.shape):
            total = weight_FD[rows].astype(np.float32) + delta.b_Fr[rows] @ delta.a_rD
            lengths_F[rows] = np.linalg.norm(total, axis=1)
        gains[layer, target] = delta.magnitude_F / np.maximum(lengths_F, np.float32(1e-30))
    return gains


def _floats(weight: Any) -> np.ndarray:
    if isinstance(weight, PackedWeight):
        weight = layout.unpack(weight)
    if isinstance(weight, QuantWeight):
        return dequantize(jax.tree.map(np.asarray, weight))
    return np.asarray(weight)
