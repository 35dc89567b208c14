"""Models of random numbers at the real shapes: as fast as the published ones, made in a minute, needing no licence.

Matrices are normal with a standard deviation of 0.02 (as transformers initializes the family), norm gains 1 + w with
w uniform in +-0.25. Every branch ends in a norm, so the residual stream grows as the root of the number of branches and
stays near 10 whatever the depth: activations are finite in bf16, and four-bit rounding meets values of the usual shape.

Numbers are drawn in blocks of rows and written at once; no tensor is ever whole in memory. A tensor's numbers depend on
the seed and its name only. Not here: anything that answers; see assets/tiny for the smallest model that does.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from gemworks.errors import ConfigError
from gemworks.memory import give_back_freed_memory
from gemworks.model.config import RELEASED, TextConfig
from gemworks.weights.atomic import replacing
from gemworks.weights.checkpoint import GenerationDefaults
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.convert import TOKENIZER_FILES, convert
from gemworks.weights.generation_json import json_from_generation_defaults
from gemworks.weights.names import expected_shapes, hf_from_ours, is_norm
from gemworks.weights.safetensors import ALIGNMENT
from gemworks.weights.safetensors_write import INDEX_NAME, SINGLE_NAME
from gemworks.weights.save import write_json

MATRIX_STD = 0.02
NORM_SPREAD = 0.25
SHARD_BYTES = 4_000_000_000

# Name of a GGUF file beside the model -> what `convert` is asked for. Gemma's head is its embedding.
GGUF_KINDS = {"q4_0": ("q4_0", False), "q4_0-pure": ("q4_0", True), "q8_0": ("q8_0", False), "bf16": ("bf16", False)}

# Weights drawn at once: 4 MiB of fp32 and as much again while they are rounded.
_BLOCK = 1 << 20

_CHAT_EOS = (1, 106)  # <eos> and <end_of_turn>

Progress = Callable[[int, int], None]


def config_of(size: str) -> TextConfig:
    """Return the config of a released size. Raises ConfigError naming those there are."""
    if size.lower() not in RELEASED:
        raise ConfigError(f'a size must be one of {", ".join(RELEASED)}, got "{size}".')
    return RELEASED[size.lower()]


def make_random(
    config: TextConfig,
    out: Path,
    *,
    seed: int = 0,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model of random numbers to the directory `out`: config.json, generation_config.json, bf16 safetensors.

    tokenizer: a directory whose tokenizer files are copied. `out` appears whole or not at all. Raises ConfigError if it
    exists and `force` is off or if `tokenizer` holds none, StorageError if the disk is full.
    """
    files = [] if tokenizer is None else _tokenizer_files(tokenizer)
    shapes = expected_shapes(config)
    total = 2 * sum(prod(shape) for shape in shapes.values())
    generation = json_from_generation_defaults(GenerationDefaults(eos_ids=_CHAT_EOS))
    ids = {key: generation[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    needed = total + 1_000_000 + sum(file.stat().st_size for file in files)
    with replacing(out, needed=needed, force=force, kind="directory") as partial:
        write_json(partial / "config.json", json_from_text_config(config, dtype="bfloat16") | ids)
        write_json(partial / "generation_config.json", generation)
        for file in files:
            (partial / file.name).write_bytes(file.read_bytes())
        _write_shards(partial, shapes, seed, shard_bytes, lambda done: progress(done, total) if progress else None)
    give_back_freed_memory()


def write_gguf(directory: Path, kind: str, out: Path, *, force: bool = False, progress: Progress | None = None) -> None:
    """Write the model in `directory` as a GGUF file of one of GGUF_KINDS; it needs a tokenizer there."""
    outtype, pure = GGUF_KINDS[kind]
    convert(directory, out, outtype=outtype, pure=pure, force=force, progress=progress)


def draw(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """Yield a tensor in bf16, some rows at a time."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if is_norm(name):
        yield rng.uniform(-NORM_SPREAD, NORM_SPREAD, shape).astype(ml_dtypes.bfloat16)
        return
    rows, columns = shape
    step = max(1, _BLOCK // columns)
    for first in range(0, rows, step):
        block = rng.standard_normal((min(step, rows - first), columns), np.float32)
        block *= np.float32(MATRIX_STD)
        yield block.astype(ml_dtypes.bfloat16)


def _tokenizer_files(directory: Path) -> list[Path]:
    files = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    if not any(file.name in ("tokenizer.json", "tokenizer.model") for file in files):
        raise ConfigError(
            f"--tokenizer must be a directory with tokenizer.json or tokenizer.model, and {directory} has neither.\n"
            "Point at the directory of a downloaded Gemma 3, or leave it out: then no GGUF file can be made."
        )
    return files


def _write_shards(
    directory: Path, shapes: dict[str, tuple[int, ...]], seed: int, shard_bytes: int, wrote: Callable[[int], None]
) -> None:
    shards = _split(shapes, shard_bytes)
    weight_map, done = {}, 0
    for number, shard in enumerate(shards, 1):
        name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for count in _write_file(directory / name, {ours: shapes[ours] for ours in shard}, seed):
            done += count
            wrote(done)
        weight_map |= {hf_from_ours(ours): name for ours in shard}
    if len(shards) > 1:
        write_json(directory / INDEX_NAME, {"metadata": {"total_size": done}, "weight_map": weight_map})


def _split(shapes: dict[str, tuple[int, ...]], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        size = 2 * prod(shape)
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _write_file(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[int]:
    """Write one safetensors file; yields the bytes of each tensor when it is written.

    safetensors_write.py writes arrays that exist; these come in blocks.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * prod(shape)
        header[hf_from_ours(name)] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for block in draw(name, shape, seed):
                file.write(block.reshape(-1).view(np.uint8).data)
            yield 2 * prod(shape)
