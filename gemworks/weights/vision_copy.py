"""The vision half of a checkpoint on its way into a new directory: stored as it was, beside a text half made anew.

Directories with both halves are written in the layout of the releases (language_model.*, vision_tower.*), their
config.json nested as theirs. Not here: GGUF files, which hold a text half alone; llama.cpp's converter makes mmproj
files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gemworks.errors import GemworksWarning
from gemworks.weights.config_json import read_json
from gemworks.weights.config_vision import json_from_vision_config
from gemworks.weights.names import hf_from_vision
from gemworks.weights.quantized import KEY
from gemworks.weights.safetensors import NUMPY_DTYPES
from gemworks.weights.safetensors_write import TensorSource
from gemworks.weights.vision_source import StoredVision, find_mmproj, stored_vision, vision_config_of

if TYPE_CHECKING:
    from gemworks.model.vision_config import VisionConfig

# What transformers needs beside the tokenizer to read images.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

# Fields of a flat config.json that stand above both halves in a nested one.
_ABOVE = ("dtype", "torch_dtype", "eos_token_id", "bos_token_id", "pad_token_id", KEY)

# Ids of the official vocabulary; only programs other than ours look for them here.
_TOKENS = {"boi_token_index": 255_999, "eoi_token_index": 256_000, "image_token_index": 262_144}


class VisionCopy(NamedTuple):
    """The tensors to write, and what makes a flat config.json of the text half a nested one of both."""

    tensors: list[TensorSource]
    nested: Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def copied_vision(path: Path) -> Iterator[VisionCopy | None]:
    """Open the vision half of the model at `path`, None for text models; arrays are read inside the block.

    Raises CheckpointError for a vision half that is not whole.
    """
    config = vision_config_of(path)
    if config is None:
        yield None
        return
    file = (path if path.is_dir() else path.parent) / "config.json"
    stated = read_json(file) if file.is_file() else {}
    with stored_vision(path) as found:
        tensors = [_source(hf_from_vision(name, "A"), one) for name, one in found.items()]
        yield VisionCopy(tensors, lambda flat: _nested(flat, config, stated))


def say_what_is_lost(path: Path, out: Path) -> None:
    """Warn where the model at `path` reads images and the .gguf file `out` will not."""
    if vision_config_of(path) is not None and find_mmproj(out) is None:
        warnings.warn(
            f"{out} will hold the text half alone, and reads no images without an mmproj file beside it.\n"
            "A directory as output keeps both halves.",
            GemworksWarning,
            stacklevel=3,
        )


def _source(published: str, one: StoredVision) -> TensorSource:
    """A tensor as it is stored; blocks of a GGUF file as bf16, its norms, which are stored otherwise there, as fp32."""
    is_gguf = one.published.startswith(("v.", "mm."))
    dtype = "F32" if is_gguf and len(one.shape) == 1 else one.dtype if one.dtype in NUMPY_DTYPES else "BF16"

    def produce() -> np.ndarray:
        return one.read().astype(NUMPY_DTYPES[dtype], copy=False)

    return TensorSource(published, dtype, one.shape, produce, one.release)


def _nested(flat: dict[str, Any], config: VisionConfig, stated: dict[str, Any]) -> dict[str, Any]:
    """The config.json of both halves. What the source's says above its halves is kept: what kind of model it is."""
    above = {key: flat[key] for key in _ABOVE if key in flat}
    text = {key: value for key, value in flat.items() if key not in (KEY, "architectures")}
    kept = {key: value for key, value in stated.items() if "text_config" in stated and key not in text.keys() | above}
    kind = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    if "text_config" in stated:
        kind |= {key: stated[key] for key in kind if key in stated}
    return {
        **_TOKENS,
        **kept,
        **kind,
        **above,
        "tie_word_embeddings": flat["tie_word_embeddings"],
        "text_config": text,
        **json_from_vision_config(config),
    }
