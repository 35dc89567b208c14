"""The files that hold a vision half, in either format, as one list of tensors: what vision.py builds from. No jax.

    safetensors   the files of the text half; which tensors are ours is in their names
    GGUF          mmproj*.gguf beside the text half, as llama.cpp's converter writes it: the projector's norm with 1
                  added, and in older files (Google's own among them) ffn_up and ffn_down under each other's name

Not here: the single GGUF files of Ollama, which have names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemworks.errors import CheckpointError, ConfigError, StorageError
from gemworks.model.vision_config import VisionConfig
from gemworks.weights.config_json import read_json, text_config_from_json
from gemworks.weights.config_vision import vision_config_from_json
from gemworks.weights.gguf_blocks import dequantize
from gemworks.weights.gguf_file import GGUFFile, TensorInfo
from gemworks.weights.hf import find_weights
from gemworks.weights.names import (
    IGNORED,
    expected_vision_shapes,
    gguf_from_vision,
    hf_from_vision,
    is_norm,
    vision_from_gguf,
    vision_from_hf,
)
from gemworks.weights.safetensors import NUMPY_DTYPES, SafetensorsFile

# Patches of a row that a soft token averages where the file does not say (all releases).
_POOL = 4

_SHOWN = 10


class StoredVision(NamedTuple):
    """One tensor of the vision half. `ours`: its name, IGNORED, or None where nobody knows it."""

    ours: object
    published: str
    shape: tuple[int, ...]
    dtype: str
    is_readable: bool
    read: Callable[[], np.ndarray]  # in our convention; read-only where it is a view of the mapped file
    release: Callable[[], None]  # lets the file's pages go


class VisionSource(NamedTuple):
    """An open vision half. `close` gives the mappings back; views keep theirs for as long as they live."""

    config: VisionConfig
    model_dim: int
    tensors: list[StoredVision]
    published: Callable[[str], str]  # the name a tensor of ours would have in these files
    close: Callable[[], None]


def vision_config_of(path: str | Path) -> VisionConfig | None:
    """Return the vision half's sizes, or None where the model at `path` reads text only.

    Raises CheckpointError for a vision half that is not Gemma 3's, StorageError where a file cannot be read.
    """
    path = Path(path).expanduser()
    if is_gguf(path):
        mmproj = find_mmproj(path)
        return None if mmproj is None else gguf_vision_config(mmproj)
    return safetensors_vision_config(path)


def open_vision(path: Path) -> VisionSource:
    """Map the vision half of the model at `path`. Raises CheckpointError for text-only models too, or StorageError."""
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


def match_vision(path: Path, source: VisionSource) -> dict[str, StoredVision]:
    """Return the stored tensor of each of our names; one CheckpointError of everything that does not fit."""
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


@contextmanager
def stored_vision(path: Path) -> Iterator[dict[str, StoredVision]]:
    """Open the vision half of the model at `path` and return our name -> stored tensor, all there and of their shapes.

    Arrays are read inside the block. Raises as load_vision does.
    """
    source = open_vision(path)
    try:
        yield match_vision(path, source)
    finally:
        source.close()


def find_mmproj(path: Path) -> Path | None:
    """Return the vision half's file beside a GGUF file, or in a directory of them; None where there is none.

    Raises CheckpointError where there are several, StorageError where the directory cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    try:
        found = sorted(file for file in folder.glob("*.gguf") if "mmproj" in file.name)
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}.") from error
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} must hold one mmproj file, and it holds {', '.join(file.name for file in found)}.\n"
            f"Move those away that are not of {path.name}."
        )
    return found[0] if found else None


def is_gguf(path: Path) -> bool:
    """Return whether the text half at `path` is a GGUF file, or the only one of a directory without config.json."""
    if path.is_dir():
        return not (path / "config.json").is_file() and any(path.glob("*.gguf"))
    return path.suffix == ".gguf"


def open_safetensors_vision(path: Path, config: VisionConfig) -> VisionSource:
    """Map the files of the model at `path`. Raises CheckpointError or StorageError as open_hf does."""
    weights = find_weights(path)
    where = weights.directory / "config.json"
    model_dim = text_config_from_json(read_json(where), str(where)).model_dim
    files: list[SafetensorsFile] = []

    def close() -> None:
        for file in files:
            file.close()

    try:
        files += [SafetensorsFile(one) for one in weights.files]
    except BaseException:
        close()
        raise
    tensors = [
        StoredVision(
            ours=vision_from_hf(name),
            published=name,
            shape=span.shape,
            dtype=span.dtype,
            is_readable=span.dtype in NUMPY_DTYPES,
            read=lambda file=file, name=name: file.array(name),
            release=lambda file=file, name=name: file.release(name),
        )
        for file in files
        for name, span in file.tensors.items()
        if "vision_tower." in name or "multi_modal_projector." in name
    ]
    return VisionSource(config, model_dim, tensors, hf_from_vision, close)


def safetensors_vision_config(path: Path) -> VisionConfig | None:
    """Return what config.json at or beside `path` says; None for text-only models and where there is no config.json."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    return vision_config_from_json(read_json(file), str(file)) if file.is_file() else None


def open_gguf_vision(path: Path) -> VisionSource:
    """Map an mmproj file. Raises CheckpointError if it is not Gemma 3's, StorageError if it cannot be read."""
    file = GGUFFile(path)
    config = _gguf_config(file)
    projector = file.tensors.get(gguf_from_vision("projector.weight"))
    model_dim = projector.shape[-1] if projector is not None and len(projector.shape) == 2 else 1
    up = file.tensors.get("v.blk.0.ffn_up.weight")
    is_swapped = up is not None and up.shape == (config.model_dim, config.ffw_dim) != (config.ffw_dim, config.model_dim)
    tensors = [_gguf_tensor(file, info, is_swapped) for info in file.tensors.values()]
    return VisionSource(config, model_dim, tensors, gguf_from_vision, file.close)


def gguf_vision_config(path: Path) -> VisionConfig:
    """Return the sizes that an mmproj file states. Raises as open_gguf_vision does."""
    file = GGUFFile(path)
    try:
        return _gguf_config(file)
    finally:
        file.close()


def _gguf_tensor(file: GGUFFile, info: TensorInfo, is_swapped: bool) -> StoredVision:
    ours = vision_from_gguf(info.name)
    if is_swapped and ours is not None:
        ours = re.sub(r"ffw\.(up|down)", lambda one: {"up": "ffw.down", "down": "ffw.up"}[one[1]], ours)

    def read() -> np.ndarray:
        stored = file.bytes_of(info.name)
        if info.kind.name in ("F32", "F16", "BF16"):
            array = np.frombuffer(stored, NUMPY_DTYPES[info.kind.name]).reshape(info.shape)
            # Views must start on 64 bytes to be used in place; GGUF aligns to 32.
            array = array if info.offset % 64 == 0 else array.copy()
        else:
            array = dequantize(stored, info.kind.name, info.shape)
        return array.astype(np.float32) - np.float32(1) if ours is not None and is_norm(ours) else array

    return StoredVision(ours, info.name, info.shape, info.kind.name, True, read, lambda: file.release(info.name))


def _gguf_config(file: GGUFFile) -> VisionConfig:
    """Sizes by llama.cpp's keys; the layers are counted, as older converters state one less."""
    metadata, where = file.metadata, file.path
    kind = metadata.get("clip.vision.projector_type", metadata.get("clip.projector_type"))
    if kind != "gemma3":
        raise CheckpointError(
            f"{where}: an mmproj file must be Gemma 3's (projector type gemma3), got {str(kind)[:60]!r}.\n"
            "Use the mmproj file that was published beside the model."
        )
    layers = [int(found[1]) for name in file.tensors if (found := re.match(r"v\.blk\.(\d{1,5})\.", name))]
    at = "clip.vision."
    keys = ("image_size", "patch_size", "embedding_length", "feed_forward_length", "attention.head_count")
    sizes = [metadata.get(at + key) for key in keys]
    pool, eps = (
        metadata.get(f"{at}projector.scale_factor", _POOL),
        metadata.get(f"{at}attention.layer_norm_epsilon", 1e-6),
    )
    for key, value in (*zip(keys, sizes, strict=True), ("projector.scale_factor", pool)):
        if type(value) is not int or not 1 <= value < 1 << 20:
            raise CheckpointError(f"{where}: {at}{key} must be a whole number of at least 1, got {value!r}.")
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise CheckpointError(f"{where}: {at}attention.layer_norm_epsilon must be between 0 and 1, got {eps!r}.")
    image_size, patch_size, model_dim, ffw_dim, num_heads = (int(size) for size in sizes if size is not None)
    try:
        return VisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            model_dim=model_dim,
            ffw_dim=ffw_dim,
            num_layers=max(layers, default=-1) + 1,
            num_heads=num_heads,
            tokens_per_image=(image_size // patch_size // pool) ** 2,
            norm_eps=eps,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
