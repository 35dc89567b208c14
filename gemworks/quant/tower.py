"""The vision tower's matrices in int8, a scale a row, as the tower's kernel reads them; everything else stays.

Rounded while the tower is loaded, one tensor at a time, so that the bf16 matrix of a file and its int8 form are never
both there for more than one. Feed-forward widths are padded with zeros to a multiple of 32 (4,304 to 4,320): gelu(0) is
0, so nothing is added.
"""

import re

import numpy as np

from gemworks.model.vision_config import VisionConfig
from gemworks.ops.layout import pack
from gemworks.ops.weight import BLOCK, PackedWeight
from gemworks.quant.rtn import quantize

_MATRIX = re.compile(r"vision\.layers\.\d+\.(attn\.[qkvo]|ffw\.(up|down))\.weight")
_HIDDEN_BIAS = re.compile(r"vision\.layers\.\d+\.ffw\.up\.bias")


def fits(config: VisionConfig) -> bool:
    """Whether the kernel takes a tower of these sizes."""
    return config.model_dim % BLOCK == 0 and config.head_dim % 4 == 0


def round_leaf(name: str, array: np.ndarray) -> np.ndarray | PackedWeight:
    """Return what the array of a tower of `fits` sizes becomes: int8 for the matrices of its layers.

    The matrix must be finite; raises ConfigError where it is not.
    """
    if _HIDDEN_BIAS.fullmatch(name):
        return np.pad(array, (0, -len(array) % BLOCK))
    if not (found := _MATRIX.fullmatch(name)):
        return array
    if found[2] is not None:
        rows, columns = (-size % BLOCK for size in array.shape)
        array = np.pad(array, ((0, rows), (0, columns)))
    rounded = quantize(array, "int8", name=name)
    return PackedWeight(pack(rounded), rounded.format, rounded.shape)
