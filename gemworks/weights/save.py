"""Saving a model as a Hugging Face directory: config.json, generation_config.json, safetensors; whole or not at all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gemworks.model.config import TextConfig
from gemworks.weights.atomic import replacing
from gemworks.weights.checkpoint import GenerationDefaults
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.generation_json import json_from_generation_defaults
from gemworks.weights.names import expected_shapes, hf_from_ours
from gemworks.weights.quantized import QuantSource, json_from_formats, pair_sources
from gemworks.weights.safetensors_write import SHARD_BYTES, Progress, TensorSource, total_bytes, write_shards

if TYPE_CHECKING:
    from gemworks.weights.vision_copy import VisionCopy

# The names of our dtypes in config.json.
CONFIG_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

# What a tensor's lines in header and index and all the configs take, at most; on top of the tensors.
_BYTES_PER_TENSOR, _CONFIG_BYTES = 400, 50_000


class Source(NamedTuple):
    """Where a tensor to be saved comes from: its dtype (F32, F16, BF16) and a function that produces the array.

    `done` is called when the array is on its way to the disk and will not be used again.
    """

    dtype: str
    produce: Callable[[], np.ndarray]
    done: Callable[[], None] | None = None


def save_hf(
    out: Path,
    config: TextConfig,
    sources: Mapping[str, Source | QuantSource],
    *,
    generation: GenerationDefaults | None = None,
    beside: Callable[[Path], None] | None = None,
    beside_bytes: int = 0,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    progress: Progress | None = None,
    vision: "VisionCopy | None" = None,
) -> None:
    """Write `sources` (our name -> source, exactly the tensors of `config`) as the directory `out`, in layout C.

    With a `vision` half both are written, in layout A.
    Tensors are produced, written and dropped one by one. `beside` may write more files, of about `beside_bytes`, into
    the directory it is given. Raises ConfigError if `out` exists and `force` is off, StorageError if the disk is full
    or refuses; then `out` is as it was.
    """
    shapes = expected_shapes(config)
    assert sources.keys() == shapes.keys(), f"not the tensors of the config: {sorted(sources.keys() ^ shapes.keys())}"
    tensors, formats = [], {}
    for name, shape in shapes.items():
        source, published = sources[name], hf_from_ours(name, "A" if vision else "C")
        if isinstance(source, QuantSource):
            tensors += pair_sources(published, shape, source)
            formats[published] = source.format
        else:
            tensors.append(TensorSource(published, source.dtype, shape, source.produce, source.done))
    generation = generation or GenerationDefaults()
    embed = sources["embed.weight"]
    dtype = "BF16" if isinstance(embed, QuantSource) else embed.dtype
    data = json_from_text_config(config, dtype=CONFIG_DTYPES[dtype]) | json_from_formats(formats)
    written = json_from_generation_defaults(generation)
    data |= {key: written[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if vision is not None:
        data = vision.nested(data)
        tensors += vision.tensors
    needed = total_bytes(tensors) + _BYTES_PER_TENSOR * len(tensors) + _CONFIG_BYTES + beside_bytes
    with replacing(out, needed=needed, force=force, kind="directory") as partial:
        write_json(partial / "config.json", data)
        write_json(partial / "generation_config.json", written)
        if beside is not None:
            beside(partial)
        write_shards(partial, tensors, shard_bytes=shard_bytes, progress=progress)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write an object as the hub's tools do: indented, keys sorted, a newline at the end."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
