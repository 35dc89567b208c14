"""What a model on this machine is, from the heads of its files: nothing is loaded, and jax is not needed.

Looked at once as long as its files are the same. What is wrong with a file is told when the model is loaded; here it
has no facts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from gemworks.errors import CheckpointError, StorageError
from gemworks.model.config import TextConfig
from gemworks.weights import store
from gemworks.weights.config_gguf import text_config_from_gguf
from gemworks.weights.config_json import read_json, text_config_from_json
from gemworks.weights.config_vision import vision_config_from_json
from gemworks.weights.gguf_file import GGUFFile
from gemworks.weights.modelfile import Modelfile, render_modelfile
from gemworks.weights.names import expected_shapes
from gemworks.weights.safetensors import SafetensorsFile

# Where `gemworks quantize` says how matrices are stored; weights/quantized.py, which needs jax, reads all of it.
_QUANTIZATION = "gemworks_quantization"

# Ollama's keys of the vision half <- those of an mmproj file.
_CLIP = {
    "vision.image_size": "clip.vision.image_size",
    "vision.patch_size": "clip.vision.patch_size",
    "vision.embedding_length": "clip.vision.embedding_length",
    "vision.feed_forward_length": "clip.vision.feed_forward_length",
    "vision.block_count": "clip.vision.block_count",
    "vision.attention.head_count": "clip.vision.attention.head_count",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a model's files say. level: the format of most bytes. vision: Ollama's keys, None without eyes."""

    format: str  # "safetensors" or "gguf"
    config: TextConfig
    level: str
    vision: Mapping[str, int] | None
    tokens: Mapping[str, int]  # bos_token_id, eos_token_id
    sampling: Mapping[str, float]  # what the makers recommend, where they say so
    is_chat: bool

    @property
    def num_parameters(self) -> int:
        """Elements of the text model's tensors, a tied head counted once."""
        return sum(map(prod, expected_shapes(self.config).values()))

    @property
    def parameter_size(self) -> str:
        """The parameters as Ollama writes them: 999.89M, 4.3B."""
        count = self.num_parameters
        if count >= 10**9:
            return f"{count / 1e9:.1f}B"
        return f"{count / 1e6:.2f}M" if count >= 10**6 else f"{count / 1e3:.2f}K"


def facts_of(path: Path) -> Facts | None:
    """Return what the model at `path` is, None where its files do not say so."""
    try:
        return read(path)
    except (CheckpointError, StorageError, OSError):
        return None


def read(path: Path) -> Facts:
    """Return what the model at `path` is. Raises CheckpointError or StorageError where its files do not say so."""
    files = store.weight_files(path)
    if not files:
        raise CheckpointError(f"{path} must hold .safetensors or .gguf files, and it holds none.")
    return _read(path, tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def num_bytes(path: Path) -> int:
    """Return the bytes of a model's weights; 0 where they cannot be read."""
    try:
        return store.weight_file_bytes(path)
    except OSError:
        return 0


def digest_of(path: Path, modelfile: Modelfile | None) -> str:
    """Return 64 hex digits that change when the model does: of its files' hashes where a pull noted them, else of
    their sizes and times, and of what a created model adds."""
    folder = path if path.is_dir() else path.parent
    noted = store.read_manifest(folder).get("files", {})
    try:
        rows = [
            (file.name, noted.get(file.name) or [file.stat().st_size, file.stat().st_mtime_ns])
            for file in store.weight_files(path)
        ]
    except OSError:
        rows = []
    told = json.dumps([rows, render_modelfile(modelfile) if modelfile else ""])
    return hashlib.sha256(told.encode()).hexdigest()


@lru_cache(maxsize=256)
def _read(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> Facts:
    files = [Path(name) for name, _, _ in stamp]
    if path.is_file() or files[0].suffix == ".gguf":
        mmproj = [file for file in path.parent.glob("mmproj*.gguf")] if path.is_file() else files
        model = next(file for file in ([path] if path.is_file() else files) if not file.name.startswith("mmproj"))
        return _read_gguf(model, [file for file in mmproj if file.name.startswith("mmproj")])
    return _read_safetensors(path, files)


def _read_safetensors(folder: Path, files: list[Path]) -> Facts:
    where = folder / "config.json"
    data = read_json(where)
    config = text_config_from_json(data, str(where))
    sizes: Counter[str] = Counter()
    for file in files:
        opened = SafetensorsFile(file)
        for span in opened.tensors.values():
            sizes[span.dtype] += span.end - span.begin
        opened.close()
    vision = vision_config_from_json(data, str(where))
    told = None
    if vision is not None:
        told = {
            "vision.image_size": vision.image_size,
            "vision.patch_size": vision.patch_size,
            "vision.embedding_length": vision.model_dim,
            "vision.feed_forward_length": vision.ffw_dim,
            "vision.block_count": vision.num_layers,
            "vision.attention.head_count": vision.num_heads,
            "mm.tokens_per_image": vision.tokens_per_image,
        }
    stated = {key: data.get(key) for key in ("bos_token_id", "eos_token_id")}
    return Facts(
        format="safetensors",
        config=config,
        level=_quantized(data) or sizes.most_common(1)[0][0],
        vision=told,
        tokens={key: ids for key, value in stated.items() if (ids := _first_id(value)) is not None},
        sampling=_sampling(_json_of(folder / "generation_config.json")),
        is_chat=any(
            (folder / name).is_file() and (name.endswith(".jinja") or "chat_template" in _json_of(folder / name))
            for name in ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
        ),
    )


def _read_gguf(file: Path, mmproj: list[Path]) -> Facts:
    opened = GGUFFile(file)
    config = text_config_from_gguf(opened.metadata, opened.tensors, str(file))
    sizes: Counter[str] = Counter()
    for info in opened.tensors.values():
        sizes[info.kind.name] += info.num_bytes
    stated = {key: opened.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")}
    has_template = bool(opened.metadata.get("tokenizer.chat_template"))
    opened.close()
    told = None
    if mmproj:
        eyes = GGUFFile(mmproj[0])
        told = {ollama: value for ollama, clip in _CLIP.items() if type(value := eyes.metadata.get(clip)) is int}
        eyes.close()
    return Facts(
        format="gguf",
        config=config,
        level=sizes.most_common(1)[0][0],
        vision=told,
        tokens={key: value for key, value in stated.items() if type(value) is int},
        sampling={},
        is_chat=has_template,
    )


def _quantized(data: Mapping[str, Any]) -> str | None:
    """The format most matrices are stored in, as `gemworks quantize` noted it; None for a model as published."""
    noted = data.get(_QUANTIZATION)
    stored = noted.get("formats") if isinstance(noted, dict) else None
    if not isinstance(stored, dict):
        return None
    formats = Counter(value for value in stored.values() if isinstance(value, str))
    return formats.most_common(1)[0][0] if formats else None


def _json_of(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _sampling(stated: Mapping[str, Any]) -> dict[str, float]:
    names = ("temperature", "top_k", "top_p")
    told = {name: stated[name] for name in names if type(stated.get(name)) in (int, float)}
    return told | {"temperature": 0.0} if stated.get("do_sample") is False else told


def _first_id(value: Any) -> int | None:
    first = value[0] if isinstance(value, list) and value else value
    return first if type(first) is int else None
