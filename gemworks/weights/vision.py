"""The vision half of a checkpoint: found, mapped and checked when the first image comes, and let go on demand.

    vision_config_of(path)     its sizes, or None for text-only models; opens no weights (of GGUF: the tables)
    load_vision(path)          tower and projector on the device
    LazyVision(path)           the same behind `get()` and `free()`

Text-only use of a 4B therefore never reads its 417 M vision parameters: the text checkpoint knows their names and skips
them, so no page of theirs comes into memory. Tensors that are stored aligned in the wanted dtype are used where they
lie. `path` is what the text half is opened by; vision_source.py finds the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import jax
import ml_dtypes
import numpy as np

from gemworks.errors import CheckpointError
from gemworks.model.multimodal import Vision, build_vision
from gemworks.ops import select
from gemworks.ops.weight import PackedWeight
from gemworks.quant import tower as quant_tower
from gemworks.weights.prepare import is_finite
from gemworks.weights.vision_source import (
    StoredVision,
    VisionSource,
    match_vision,
    open_vision,
    vision_config_of,
)

__all__ = ["LazyVision", "load_vision", "vision_config_of"]

if TYPE_CHECKING:
    from gemworks.weights.prepare import Dtype

_SHOWN = 10


def load_vision(path: str | Path, *, dtype: Dtype = "auto") -> Vision:
    """Return tower and projector of the model at `path`: a directory, a .safetensors file, an index or a GGUF file.

    dtype "auto" is float32 where every matrix is stored so, else bfloat16; and in bfloat16 the matrices of the tower's
    layers are rounded to int8 where a kernel multiplies them (docs/numerics.md). Norms and biases are float32. Raises
    CheckpointError that names everything missing, unknown, of another shape or not finite, and for text-only models.
    """
    path = Path(path).expanduser()
    source = open_vision(path)
    try:
        return _build(path, match_vision(path, source), source, dtype)
    finally:
        source.close()


class LazyVision:
    """The vision half of one model, loaded by the first `get` and dropped by `free`. Safe to share between threads."""

    def __init__(self, path: str | Path, *, dtype: Dtype = "auto", load: Callable[..., Vision] = load_vision):
        """Nothing is opened here. `load` is called as load(path, dtype=...)."""
        self._path = Path(path)
        self._dtype: Dtype = dtype
        self._load = load
        self._lock = Lock()
        self._vision: Vision | None = None

    @property
    def is_loaded(self) -> bool:
        """True between a `get` and the next `free`."""
        return self._vision is not None

    def get(self) -> Vision:
        """Return tower and projector, loading them now if they are not there. Raises as load_vision does."""
        with self._lock:
            if self._vision is None:
                self._vision = self._load(self._path, dtype=self._dtype)
            return self._vision

    def free(self) -> None:
        """Let go of the arrays; their memory goes when nobody else holds them. The next `get` loads again."""
        with self._lock:
            self._vision = None


def _build(path: Path, found: dict[str, StoredVision], source: VisionSource, dtype: Dtype) -> Vision:
    if dtype == "auto":
        matrices = [one for one in found.values() if len(one.shape) > 1]
        dtype = "float32" if all(one.dtype == "F32" for one in matrices) else "bfloat16"
    wanted = np.dtype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    rounds = dtype != "float32" and select.packs_towers() and quant_tower.fits(source.config)
    broken = []

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array | PackedWeight:
        stored = found[name]
        array = stored.read()
        if not is_finite(array):
            broken.append(stored.published)
        elif rounds:
            array = quant_tower.round_leaf(name, array.reshape(shape))
            if isinstance(array, PackedWeight):
                packed = jax.tree.map(lambda data: jax.device_put(data, may_alias=True), array)
                stored.release()
                return packed
            shape = array.shape
        is_mapped = array.dtype == wanted and len(shape) > 1 and not array.flags.writeable
        array = array.reshape(shape).astype(wanted if len(shape) > 1 else np.float32, copy=False)
        on_device = jax.device_put(array, may_alias=True)
        if not is_mapped:
            jax.block_until_ready(on_device)
            stored.release()
        return on_device

    vision = build_vision(source.config, source.model_dim, leaf)
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise CheckpointError(
            f"{path}: weights must be finite, got NaN or infinity in {', '.join(broken[:_SHOWN])}{more}.\n"
            "Fetch or export the model again."
        )
    return vision
