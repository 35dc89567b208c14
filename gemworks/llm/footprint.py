"""How many bytes a model will take, before it is loaded: what a budget for several models is kept by."""

from gemworks.engine.memory import PROGRAM_BYTES, num_programs
from gemworks.engine.shapes import DRAFT_LENGTHS
from gemworks.llm.sizes import DEFAULT_CONTEXT, pool_sizes
from gemworks.model import costs


def footprint(
    model: str,
    *,
    context: int | None = None,
    quant: str | None = None,
    embed: str | None = None,
    kv: str | None = None,
    max_sequences: int | None = None,
    draft: str | None = None,
) -> int:
    """Return the bytes of LLM(model, ...) with these arguments: weights, keys and values, programs.

    Exact but for weights that are stored in files with a vision half, which is counted, and for programs (10 MB each,
    engine/memory.py). Without what every process has, and without the model that `draft` may name. Raises ConfigError,
    CheckpointError, StorageError.
    """
    from gemworks.weights.checkpoint import open_checkpoint
    from gemworks.weights.hub import resolve
    from gemworks.weights.store import weight_file_bytes

    resolved = resolve(model)
    with open_checkpoint(resolved.path) as checkpoint:
        config = checkpoint.config
    if context is None and resolved.modelfile is not None:
        context = resolved.modelfile.context
    context = min(context or DEFAULT_CONTEXT, config.max_positions)
    longest = DRAFT_LENGTHS[-1] if draft else 0
    pools = pool_sizes(config, context=context, kv=kv or "bfloat16", max_sequences=max_sequences, draft=longest)
    weights = weight_file_bytes(resolved.path) if quant is None else _quantized(config, quant, embed)
    return weights + pools.total_bytes + num_programs(pools.max_sequences, longest) * PROGRAM_BYTES


def _quantized(config, quant: str, embed: str | None) -> int:
    """Bytes in the format of the matrices; rules for single ones ("PATTERN=FORMAT") are not counted."""
    format, *rules = (part.strip() for part in quant.split(","))
    embed = next((rule.removeprefix("embed=") for rule in rules if rule.startswith("embed=")), embed)
    if embed is None:
        embed = "int8" if format.startswith("int") else format
    return costs.weight_bytes(config, format, embed_format=embed)
