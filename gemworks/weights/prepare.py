"""What each tensor of a checkpoint becomes in memory: a plain array or a quantized matrix, one at a time.

Without a plan a matrix that is stored quantized stays as it is stored where the CPU kernels read it; elsewhere it is
turned into bf16 once, as XLA would do so at every step (270M in Q4_0 decodes at a fifth of the rate). With a plan every
matrix that the plan names is rounded to its format, or kept if it has that format already, on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np

from gemworks.errors import ConfigError
from gemworks.ops.weight import Format, QuantWeight
from gemworks.quant.plan import QuantPlan
from gemworks.quant.rtn import quantize
from gemworks.weights.checkpoint import Checkpoint
from gemworks.weights.names import is_norm

Dtype = Literal["auto", "bfloat16", "float32"]

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}

# Elements looked at in one go when a tensor is checked for NaN: two arrays of this size stay in a 2 MB L2 cache.
_CHECK_BLOCK = 1 << 18


@dataclass(kw_only=True, slots=True)
class Preparation:
    """How the tensors of a checkpoint are turned; `broken` collects the names of those with NaN or infinite values."""

    checkpoint: Checkpoint
    dtype: np.dtype  # of the matrices that are not quantized
    formats: Mapping[str, Format | None]  # our name -> format, None: a plain array
    broken: list[str] = field(default_factory=list)

    def plain_dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor that is not quantized: norm gains are float32."""
        return np.dtype(np.float32) if is_norm(name) else self.dtype

    def read(self, name: str) -> np.ndarray | QuantWeight:
        """Return a tensor as the model wants it, mapped from the file where that is possible."""
        format = self.formats[name]
        if format is not None:
            kept = self.checkpoint.read_quantized(name)
            if kept is not None and kept.format == format:
                if not np.isfinite(kept.scales).all():
                    self.broken.append(name)
                return kept
            return quantize(self.checkpoint.read(name), format, name=name)  # refuses NaN
        stored = self.checkpoint.read(name)
        if not is_finite(stored):
            self.broken.append(name)
        return stored.astype(self.plain_dtype(name), copy=False)


def prepare(checkpoint: Checkpoint, dtype: str, quant: QuantPlan | None, *, has_kernels: bool) -> Preparation:
    """Decide what every tensor becomes. Raises ConfigError for a dtype that does not go with the rest."""
    if quant is not None and dtype == "float32":
        raise ConfigError("quant and dtype=float32 contradict each other; leave one of them out.")
    formats: dict[str, Format | None] = {}
    for name, entry in checkpoint.entries.items():
        if is_norm(name):
            formats[name] = None
        elif quant is not None:
            formats[name] = quant.format_of(name, entry.shape)
        else:
            formats[name] = checkpoint.quantized_format(name) if dtype == "auto" and has_kernels else None
    own = _DTYPES[resolve_dtype(checkpoint, dtype) if quant is None else "bfloat16"]
    return Preparation(checkpoint=checkpoint, dtype=own, formats=formats)


def resolve_dtype(checkpoint: Checkpoint, dtype: str) -> Literal["bfloat16", "float32"]:
    """Return the dtype the matrices will have."""
    if dtype == "auto":
        matrices = (entry for name, entry in checkpoint.entries.items() if not is_norm(name))
        return "float32" if all(entry.dtype == "F32" for entry in matrices) else "bfloat16"
    if dtype in ("float16", "fp16", "half"):
        raise ConfigError(
            f'dtype must be auto, bfloat16 or float32, got "{dtype}".\n'
            "Gemma 3's activations exceed the range of fp16; bfloat16 takes the same memory."
        )
    if dtype not in _DTYPES:
        raise ConfigError(f'dtype must be auto, bfloat16 or float32, got "{dtype}".')
    return dtype  # type: ignore[return-value]


def is_finite(array: np.ndarray) -> bool:
    """Return whether no element is NaN or infinite. Floats are looked at as integers: 7x faster in bf16."""
    flat = array.reshape(-1)
    if flat.dtype.itemsize == 2:
        infinity = 0x7F80 if flat.dtype == ml_dtypes.bfloat16 else 0x7C00
        bits, magnitude, infinity = flat.view(np.uint16), np.uint16(0x7FFF), np.uint16(infinity)
    else:
        bits, magnitude, infinity = flat.view(np.uint32), np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
    return all(
        np.bitwise_and(bits[i : i + _CHECK_BLOCK], magnitude).max() < infinity
        for i in range(0, bits.size, _CHECK_BLOCK)
    )
