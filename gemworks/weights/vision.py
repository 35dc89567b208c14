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
from gemworks.model.vision_config import VisionConfig
from gemworks.weights.names import IGNORED, expected_vision_shapes
from gemworks.weights.prepare import is_finite
from gemworks.weights.safetensors import NUMPY_DTYPES
from gemworks.weights.vision_source import (
    StoredVision,
    VisionSource,
    find_mmproj,
    gguf_vision_config,
    is_gguf,
    open_gguf_vision,
    open_safetensors_vision,
    safetensors_vision_config,
)

if TYPE_CHECKING:
    from gemworks.weights.prepare import Dtype

_SHOWN = 10


def vision_config_of(path: str | Path) -> VisionConfig | None:
    """Return the vision half's sizes, or None where the model at `path` reads text only.

    Raises CheckpointError for a vision half that is not Gemma 3's, StorageError where a file cannot be read.
    """
    path = Path(path).expanduser()
    if is_gguf(path):
        mmproj = find_mmproj(path)
        return None if mmproj is None else gguf_vision_config(mmproj)
    return safetensors_vision_config(path)


def load_vision(path: str | Path, *, dtype: Dtype = "auto") -> Vision:
    """Return tower and projector of the model at `path`: a directory, a .safetensors file, an index or a GGUF file.

    dtype "auto" is float32 where every matrix is stored so, else bfloat16. Norms and biases are float32. Raises
    CheckpointError that names everything missing, unknown, of another shape or not finite, and for text-only models.
    """
    path = Path(path).expanduser()
    source = _open(path)
    try:
        return _build(path, _match(path, source), source, dtype)
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


def _open(path: Path) -> VisionSource:
    if is_gguf(path):
        mmproj = find_mmproj(path)
        if mmproj is not None:
            return open_gguf_vision(mmproj)
        hint = "Put the mmproj file that was published with the model beside it."
    else:
        config = safetensors_vision_config(path)
        if config is not None:
            return open_safetensors_vision(path, config)
        hint = "4B, 12B and 27B have one; a converted or quantized model has it only if it was kept."
    raise CheckpointError(f"{path}: reading images needs a model with a vision half, got one for text only.\n{hint}")


def _match(path: Path, source: VisionSource) -> dict[str, StoredVision]:
    """The stored tensor of each of our names; one CheckpointError of everything that does not fit."""
    expected = expected_vision_shapes(source.config, source.model_dim)
    found: dict[str, StoredVision] = {}
    wrong = []
    for one in source.tensors:
        name = one.ours
        if name is IGNORED:
            continue
        if not isinstance(name, str) or name not in expected:
            wrong.append(f"  unknown  {one.published}  {list(one.shape)} {one.dtype}")
            continue
        if name in found:
            wrong.append(f"  twice    {name}  as {found[name].published} and {one.published}")
        elif one.shape != expected[name]:
            wrong.append(f"  shape    {one.published}  has {list(one.shape)}, wants {list(expected[name])}")
        elif not one.is_readable:
            wrong.append(f"  dtype    {one.published}  is {one.dtype}, wants {', '.join(NUMPY_DTYPES)}")
        found.setdefault(name, one)
    missing = [name for name in expected if name not in found]
    wrong += [f"  missing  {name}  {list(expected[name])}  (expected as {source.published(name)})" for name in missing]
    if not wrong:
        return found
    hint = "The file was saved or fetched in part, or its config is of another model: fetch it again."
    if len(missing) == len(expected):
        hint = "The weights are a text half alone: load them with a flat config.json, or fetch the whole model."
    more = [f"  ... and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    subject = f"{path}: {len(wrong)} of the vision half's tensors are not as they must be."
    raise CheckpointError("\n".join([subject, *wrong[:_SHOWN], *more, hint]))


def _build(path: Path, found: dict[str, StoredVision], source: VisionSource, dtype: Dtype) -> Vision:
    if dtype == "auto":
        matrices = [one for one in found.values() if len(one.shape) > 1]
        dtype = "float32" if all(one.dtype == "F32" for one in matrices) else "bfloat16"
    wanted = np.dtype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    broken = []

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        stored = found[name]
        array = stored.read()
        if not is_finite(array):
            broken.append(stored.published)
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
