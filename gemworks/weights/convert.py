"""From any checkpoint that can be read to a Hugging Face directory or a .gguf file, one tensor at a time.

    safetensors -> safetensors   another dtype, another layout, other shards
    GGUF -> safetensors          block-quantized tensors are written as floats; the tokenizer is written from the file's
    any -> GGUF                  see gguf_write.py

The output appears under its name when it is whole. A directory keeps the vision half as it is stored; a GGUF file holds
the text half alone, and a warning says so.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.errors import CheckpointError, ConfigError, StorageError
from gemworks.weights.atomic import check_target
from gemworks.weights.checkpoint import Checkpoint, Vocabulary, open_checkpoint
from gemworks.weights.gguf_write import FORMAT_KINDS, write_gguf
from gemworks.weights.names import is_norm
from gemworks.weights.quantized import QuantSource
from gemworks.weights.safetensors import NUMPY_DTYPES
from gemworks.weights.safetensors_write import SHARD_BYTES, Progress
from gemworks.weights.save import Source, save_hf
from gemworks.weights.vision_copy import PROCESSOR_FILES, copied_vision, say_what_is_lost
from gemworks.weights.vision_source import vision_config_of

# Accepted spellings of the output's dtype -> how the format's header writes it.
SAFETENSORS_TYPES = {
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float32": "F32",
    "f32": "F32",
    "float16": "F16",
    "f16": "F16",
}
GGUF_TYPES = {
    "f32": "f32",
    "f16": "f16",
    "bf16": "bf16",
    "q8_0": "q8_0",
    "q4_0": "q4_0",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
}

# Beside the weights, copied as they are.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)

# Elements rounded and checked in one go, so that the check needs no memory worth counting.
_CAST_BLOCK = 1 << 18

# tokenizer.json of the official vocabulary is 33 MB.
_WRITTEN_TOKENIZER_BYTES = 40_000_000


def convert(
    in_path: str | Path,
    out_path: str | Path,
    *,
    outtype: str | None = None,
    pure: bool = False,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the checkpoint at `in_path` to `out_path`: GGUF if that ends in .gguf, else a Hugging Face directory.

    outtype: bfloat16, float32 or float16 for a directory (default: as stored; bfloat16 for block-quantized input);
    f32, f16, bf16, q8_0 or q4_0 for GGUF (default: as most matrices are stored). `pure` stores the embedding of a
    q4_0 file in Q4_0 too, not in Q8_0. `progress(bytes_done, bytes_total)` follows every tensor. Raises ConfigError
    for an outtype or output that will not do, else as open_checkpoint and save_hf do.
    """
    in_path, out_path = Path(in_path).expanduser(), Path(out_path).expanduser()
    to_gguf = out_path.suffix == ".gguf"
    if out_path.suffix in (".safetensors", ".bin"):
        raise ConfigError(
            f"{out_path} must be a directory (or end in .gguf): config.json and the tokenizer go beside the weights.\n"
            f"Name the directory, as in {out_path.with_suffix('')}."
        )
    wanted = _outtype(outtype, GGUF_TYPES if to_gguf else SAFETENSORS_TYPES, out_path)
    check_apart(in_path, out_path)
    check_target(out_path, force=force, kind="file" if to_gguf else "directory")
    with open_checkpoint(in_path) as checkpoint:
        if to_gguf:
            say_what_is_lost(in_path, out_path)
            write_gguf(
                checkpoint,
                vocabulary_of(checkpoint),
                out_path,
                wanted or _as_stored(checkpoint),
                pure=pure,
                force=force,
                progress=progress,
            )
        else:
            sources = {name: source_of(checkpoint, name, wanted) for name in checkpoint.entries}
            write_directory(checkpoint, out_path, sources, shard_bytes=shard_bytes, force=force, progress=progress)


def _outtype(outtype: str | None, known: dict[str, str], out_path: Path) -> str | None:
    if outtype is None or outtype.lower() in known:
        return None if outtype is None else known[outtype.lower()]
    kind = "a GGUF file" if out_path.suffix == ".gguf" else "a safetensors directory"
    raise ConfigError(
        f'outtype of {kind} must be one of {", ".join(known)}, got "{outtype}".\n'
        "Quantized outputs are GGUF files: let the output's name end in .gguf."
    )


def check_apart(in_path: Path, out_path: Path) -> None:
    """Refuse an output that is the input or holds it: replacing it would remove what is being read."""
    source, target = in_path.resolve(), out_path.resolve()
    if target == source or target in source.parents:
        raise ConfigError(f"{out_path} must not be the input or a directory around it ({in_path}).\nChoose another.")


def write_directory(
    checkpoint: Checkpoint,
    out: Path,
    sources: Mapping[str, Source | QuantSource],
    *,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write `sources` as save_hf does, with the generation defaults and the tokenizer of `checkpoint`."""
    files = [] if checkpoint.format == "gguf" else _there(_directory_of(checkpoint), TOKENIZER_FILES)
    vocabulary = checkpoint.vocabulary()
    if vision_config_of(checkpoint.path) is not None:
        files += _there(_directory_of(checkpoint), PROCESSOR_FILES)

    def beside(directory: Path) -> None:
        for file in files:
            _copy(file, directory / file.name)
        if vocabulary is not None:
            from gemworks.tokenizer.tokenizer import Tokenizer

            tokenizer = Tokenizer.from_vocabulary(*vocabulary, where=str(checkpoint.path))
            tokenizer.save(directory, chat_template=checkpoint.chat_template)

    with copied_vision(checkpoint.path) as vision:
        save_hf(
            out,
            checkpoint.config,
            sources,
            generation=checkpoint.generation,
            beside=beside,
            beside_bytes=_WRITTEN_TOKENIZER_BYTES if vocabulary else sum(file.stat().st_size for file in files),
            shard_bytes=shard_bytes,
            force=force,
            progress=progress,
            vision=vision,
        )


def source_of(checkpoint: Checkpoint, name: str, wanted: str | None) -> Source:
    """The tensor as the output wants it. From GGUF all tensors take one dtype, as in the files GGUFs are made from."""
    entry = checkpoint.entries[name]
    if wanted is None and checkpoint.format == "safetensors" and entry.dtype in NUMPY_DTYPES:
        dtype = entry.dtype
    else:
        stored = _main_dtype(checkpoint)
        dtype = wanted or (stored if stored in NUMPY_DTYPES else "BF16")
    return Source(
        dtype,
        lambda: cast(checkpoint.read(name), NUMPY_DTYPES[dtype], f"{entry.published} in {entry.file}"),
        lambda: checkpoint.release(name),
    )


def _as_stored(checkpoint: Checkpoint) -> str:
    """The outtype of a GGUF file that is nearest to what the checkpoint holds."""
    stored = _main_dtype(checkpoint)
    return GGUF_TYPES.get(FORMAT_KINDS.get(stored, stored).lower(), "bf16")


def _main_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that most bytes of the layers' matrices have: not the norms', not the embedding's."""
    totals: dict[str, int] = {}
    for name, entry in checkpoint.entries.items():
        if name.startswith("layers.") and not is_norm(name):
            totals[entry.dtype] = totals.get(entry.dtype, 0) + entry.num_bytes
    return max(totals, key=lambda dtype: totals[dtype])


def cast(array: np.ndarray, dtype: np.dtype[Any], where: str) -> np.ndarray:
    """`array` as `dtype`, rounded to the nearest; itself if it has that dtype already.

    Raises CheckpointError if a finite value becomes infinite, which float16 does above 65,504.
    """
    if array.dtype == dtype:
        return array
    result = np.empty(array.shape, dtype)
    values, rounded = array.reshape(-1), result.reshape(-1)
    for at in range(0, values.size, _CAST_BLOCK):
        block = values[at : at + _CAST_BLOCK]
        with np.errstate(over="ignore"):
            rounded[at : at + _CAST_BLOCK] = block
        lost = block[np.isinf(rounded[at : at + _CAST_BLOCK]) & np.isfinite(block)]
        if lost.size:
            raise CheckpointError(
                f"{where} must fit {dtype}, and it holds {float(lost[0]):g}.\nConvert to bfloat16 or float32."
            )
    return result


def _directory_of(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _there(directory: Path, names: Sequence[str]) -> list[Path]:
    return [directory / name for name in names if (directory / name).is_file()]


def _copy(source: Path, target: Path) -> None:
    try:
        handle = source.open("rb")
    except OSError as error:
        raise StorageError(f"{source} cannot be read: {error.strerror}.") from error
    with handle, target.open("wb") as file:
        shutil.copyfileobj(handle, file)


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """The vocabulary for a GGUF file, from the checkpoint itself or from the tokenizer beside it."""
    if (vocabulary := checkpoint.vocabulary()) is not None:
        return vocabulary
    directory = _directory_of(checkpoint)
    if not any((directory / name).is_file() for name in TOKENIZER_FILES[:2]):
        raise CheckpointError(
            f"{directory} must hold tokenizer.json or tokenizer.model, and it holds neither.\n"
            "A GGUF file carries its vocabulary: fetch the model's tokenizer into the same directory."
        )
    from gemworks.tokenizer.tokenizer import Tokenizer

    return Vocabulary(*Tokenizer.load(directory).to_vocabulary(checkpoint.config.vocab_size))
