"""From an open checkpoint to a model on the device, tensor by tensor.

A tensor that is stored in the wanted dtype and 64-byte aligned is used where it lies in the file's mapping; any other
is converted into memory of its own and its file pages are let go. So the peak is the model plus one tensor.
"""

import warnings
from collections.abc import Callable
from typing import Literal

import jax
import ml_dtypes
import numpy as np

from gemworks.errors import ConfigError, GemworksWarning
from gemworks.model.gemma3 import Gemma3, build
from gemworks.weights.checkpoint import Checkpoint
from gemworks.weights.names import is_norm

Dtype = Literal["auto", "bfloat16", "float32"]

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}

# Elements looked at in one go when a tensor is checked for NaN: two arrays of this size stay in a 2 MB L2 cache.
_CHECK_BLOCK = 1 << 18


def load_model(
    checkpoint: Checkpoint, *, dtype: Dtype = "auto", progress: Callable[[int, int], None] | None = None
) -> Gemma3:
    """Return the model with every tensor on the default device; the checkpoint may be closed afterwards.

    dtype "auto" is float32 where every matrix is stored in F32, else bfloat16 (F16 too: the model never runs in fp16).
    Norm gains are float32. `progress(bytes_done, bytes_total)` is called after every tensor. NaN or infinite weights
    are a GemworksWarning that names the tensors.
    """
    weights_dtype = _DTYPES[resolve_dtype(checkpoint, dtype)]
    done, broken = 0, []

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        nonlocal done
        stored = checkpoint.read(name)
        assert stored.shape == shape, f"{name}: the strict check let {stored.shape} pass for {shape}"
        if not is_finite(stored):
            broken.append(name)
        wanted = np.dtype(np.float32) if is_norm(name) else weights_dtype
        array = jax.device_put(stored.astype(wanted, copy=False), may_alias=True)
        if stored.dtype != wanted or stored.flags.writeable:  # not the file's own pages any more
            array.block_until_ready()
            del stored
            checkpoint.release(name)
        done += checkpoint.entries[name].num_bytes
        if progress:
            progress(done, checkpoint.num_bytes)
        return array

    model = build(checkpoint.config, leaf)
    if broken:
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        warnings.warn(
            f"{checkpoint.path}: {len(broken)} of {len(checkpoint.entries)} tensors hold NaN or infinite values: "
            f"{', '.join(broken[:10])}{more}.\nAnswers will be wrong; fetch or export the model again.",
            GemworksWarning,
            stacklevel=2,
        )
    return model


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
