"""Bytes of a model, by arithmetic over its config. Every bench and the memory plan use these.

Bytes are exact; GB here and in the report is 10^9 bytes.
"""

from math import ceil

from gemworks.model.config import TextConfig

# Bits a weight of a matrix costs. Block-32 formats carry one fp16 scale a block; per-channel scales are 4 bytes a row.
BITS = {
    "f32": 32.0,
    "bf16": 16.0,
    "f16": 16.0,
    "sfp8": 8.0,
    "int8": 8.0,
    "int8-b32": 8.5,
    "q8_0": 8.5,
    "int4": 4.0,
    "int4-b32": 4.5,
}
_ROW_SCALE_BYTES = {"int8": 4, "int4": 4}


def matrix_shapes(config: TextConfig) -> list[tuple[int, int]]:
    """Return [out, in] of every matrix of the blocks, without embedding and head."""
    D, F = config.model_dim, config.ffw_dim
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    block = [(q_dim, D), (kv_dim, D), (kv_dim, D), (D, q_dim), (F, D), (F, D), (D, F)]
    return block * len(config.layers)


def num_norm_parameters(config: TextConfig) -> int:
    """Return the number of norm gains: four of the model width and two of the head width a layer, and the final one."""
    return len(config.layers) * (4 * config.model_dim + 2 * config.head_dim) + config.model_dim


def num_parameters(config: TextConfig) -> int:
    """Return the text model's parameters; a tied head counts once."""
    tables = 1 if config.tied_head else 2
    matrices = sum(rows * cols for rows, cols in matrix_shapes(config))
    return matrices + num_norm_parameters(config) + tables * config.vocab_size * config.model_dim


def weight_bytes(config: TextConfig, format: str = "bf16", *, embed_format: str | None = None) -> int:
    """Return bytes of all weights with matrices in `format`, embedding and head in `embed_format` (default the same).

    Norm gains stay in bf16 (fp32 where the format is fp32). Formats are the keys of BITS.
    """
    tables = [(config.vocab_size, config.model_dim)] * (1 if config.tied_head else 2)
    norms = num_norm_parameters(config) * (4 if format == "f32" else 2)
    matrices = sum(_matrix_bytes(shape, format) for shape in matrix_shapes(config))
    return matrices + norms + sum(_matrix_bytes(shape, embed_format or format) for shape in tables)


def kv_bytes(config: TextConfig, context: int, *, windowed: bool = True, kv: str = "bfloat16") -> int:
    """Return bytes of one sequence's keys and values at `context` tokens, stored as `kv`.

    windowed: local layers keep min(context, window) positions, as Gemworks stores them; False counts every
    layer at full length, as the report's table does.
    """
    per_head = {"bfloat16": 2, "int8": 1, "float32": 4}[kv] * config.head_dim + (4 if kv == "int8" else 0)  # a scale
    per_position = 2 * config.num_kv_heads * per_head
    return per_position * sum(
        min(context, spec.window) if windowed and spec.window is not None else context for spec in config.layers
    )


def _matrix_bytes(shape: tuple[int, int], format: str) -> int:
    rows, cols = shape
    if format in ("q8_0", "int8-b32", "int4-b32"):  # whole blocks of 32 along a row
        return rows * ceil(cols / 32) * (18 if format == "int4-b32" else 34)
    return ceil(rows * cols * BITS[format] / 8) + rows * _ROW_SCALE_BYTES.get(format, 0)
