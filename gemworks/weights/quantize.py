"""From any checkpoint to a quantized one, as a plan says: a directory or a .gguf file, one matrix in memory at a time.

    OUT ends in .gguf    Q4_0, Q8_0 and BF16 tensors, which are what GGUF has of our formats
    else                 a directory as quantized.py draws it

A matrix that has its format already keeps its codes; a directory keeps the vision half as it is stored. Here is the
writing; rounding is gemworks.quant's.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from gemworks.errors import ConfigError
from gemworks.model.gemma3 import Gemma3, build
from gemworks.ops.weight import Format, QuantWeight
from gemworks.quant.plan import QuantPlan
from gemworks.quant.rtn import quantize
from gemworks.weights.atomic import check_target
from gemworks.weights.checkpoint import Checkpoint
from gemworks.weights.convert import check_apart, source_of, vocabulary_of, write_directory
from gemworks.weights.gguf_write import FORMAT_KINDS, write_gguf
from gemworks.weights.names import is_norm
from gemworks.weights.prepare import resolve_dtype
from gemworks.weights.quantized import QuantSource
from gemworks.weights.safetensors_write import SHARD_BYTES, Progress
from gemworks.weights.save import Source
from gemworks.weights.vision_copy import say_what_is_lost

# Called with our name and the format; returns the quantized matrix.
Produce = Callable[[str, Format], QuantWeight]


def write_quantized(
    checkpoint: Checkpoint,
    out: Path,
    plan: QuantPlan,
    *,
    produce: Produce | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write `checkpoint` with the formats of `plan` to `out`, whole or not at all.

    `produce` makes each quantized matrix, called in the model's order; None rounds to the nearest. Raises as
    `check_request` does, ConfigError for weights that a format cannot hold, and as save_hf and write_gguf do.
    """
    formats = check_request(checkpoint, out, plan, force=force)
    make = produce or (lambda name, format: rounded(checkpoint, name, format))
    quantized = {
        name: QuantSource(format, partial(make, name, format), partial(checkpoint.release, name))
        for name, format in formats.items()
    }
    if out.suffix == ".gguf":
        say_what_is_lost(checkpoint.path, out)
        vocabulary = vocabulary_of(checkpoint)
        write_gguf(checkpoint, vocabulary, out, "bf16", quantized=quantized, force=force, progress=progress)
        return
    bf16 = {n for n, entry in checkpoint.entries.items() if plan.format_of(n, entry.shape) == "bf16"}
    sources: dict[str, Source | QuantSource] = {
        name: quantized.get(name) or source_of(checkpoint, name, "BF16" if name in bf16 else None)
        for name in checkpoint.entries
    }
    write_directory(checkpoint, out, sources, shard_bytes=shard_bytes, force=force, progress=progress)


def check_request(checkpoint: Checkpoint, out: Path, plan: QuantPlan, *, force: bool = False) -> dict[str, Format]:
    """Return our name -> format of what will be quantized (bf16 is not), in the model's order.

    Raises ConfigError where `out` may not be written, a pattern matches nothing, a tensor does not fit its format, or
    a GGUF file cannot hold a format.
    """
    to_gguf = out.suffix == ".gguf"
    if out.suffix in (".safetensors", ".bin"):
        raise ConfigError(
            f"{out} must be a directory (or end in .gguf): config.json and the tokenizer go beside the weights.\n"
            f"Name the directory, as in {out.with_suffix('')}."
        )
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    rows = plan.describe(shapes)
    unfit = {row.format: row.pattern for row in rows if row.num_bytes is not None and row.format not in _GGUF_FORMATS}
    if to_gguf and unfit:
        named = ", ".join(f"{format} ({pattern})" for format, pattern in unfit.items())
        raise ConfigError(
            f"{out}: a GGUF file holds {', '.join(_GGUF_FORMATS)}, and the plan asks for {named}.\n"
            "Choose one of these formats, or a directory as output."
        )
    check_apart(checkpoint.path, out)
    check_target(out, force=force, kind="file" if to_gguf else "directory")
    formats: dict[str, Format] = {}
    for name, shape in shapes.items():
        format = plan.format_of(name, shape)
        if format is not None and format != "bf16":
            formats[name] = format
    return formats


_GGUF_FORMATS = (*FORMAT_KINDS, "bf16")


def rounded(checkpoint: Checkpoint, name: str, format: Format) -> QuantWeight:
    """Return a matrix in `format`: as it is stored where that is its format, else rounded to the nearest."""
    if checkpoint.quantized_format(name) == format:
        weight = checkpoint.read_quantized(name)
        assert weight is not None
        return weight
    return quantize(checkpoint.read(name), format, name=name)


def exact_model(checkpoint: Checkpoint, plan: QuantPlan | None = None) -> Gemma3:
    """Return the model for measuring: quantized matrices row-major, code for code, as stored or as `plan` rounds them.

    Loading for use (load.py) packs them for the kernels, or rounds them to bf16 where there are none.
    """
    dtype = jnp.float32 if resolve_dtype(checkpoint, "auto") == "float32" else jnp.bfloat16

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array | QuantWeight:
        format = plan.format_of(name, shape) if plan else checkpoint.quantized_format(name)
        if format is None or format == "bf16":
            array = jnp.array(checkpoint.read(name), jnp.float32 if is_norm(name) else dtype)
        else:
            array = jax.tree.map(jnp.array, rounded(checkpoint, name, format))
        jax.block_until_ready(array)
        checkpoint.release(name)
        return array

    return build(checkpoint.config, leaf)
