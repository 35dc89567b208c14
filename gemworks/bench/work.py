"""How many bytes and multiply-adds one step of a model is, from its shapes: what measured times are divided by.

Decode reads every matrix, the head among them, and the stored keys and values once a token. Prefill multiplies every
token with every matrix of the blocks; its head is one row. GB is 10^9 bytes; a multiply-add (MAC) is two operations.
"""

from gemworks.model import costs
from gemworks.model.config import TextConfig
from gemworks.ops import layout
from gemworks.ops.weight import Format

# How llama.cpp stores the matrices and the table of each of its files, by costs' names. OpenVINO's export has one
# fp16 scale for 128 columns and one int8 row in the table.
_Q6_K_BITS = 8 * 210 / 256
_OPENVINO_BITS = 4 + 16 / 128
GGUF_FORMATS = {"q4_0": ("int4-b32", "q8_0"), "q4_0-pure": ("int4-b32", "int4-b32"), "q8_0": ("q8_0", "q8_0")}


def ours_bytes(config: TextConfig, format: Format | None, embed: Format | None) -> int:
    """Return the bytes of our weights as the kernels read them, padding and fp32 norms included; None is bf16."""
    if format is None or embed is None:
        return costs.weight_bytes(config, "bf16") + 2 * costs.num_norm_parameters(config)
    matrices = sum(layout.packed_bytes(format, *shape) for shape in costs.matrix_shapes(config))
    tables = 1 if config.tied_head else 2
    table = layout.packed_bytes(embed, config.vocab_size, config.model_dim)
    return matrices + tables * table + 4 * costs.num_norm_parameters(config)


def gguf_bytes(config: TextConfig, kind: str) -> int:
    """Return the bytes of the weights in one of llama.cpp's files (fp32 norms); kinds of GGUF_FORMATS and q4_0-q6_k."""
    norms = 2 * costs.num_norm_parameters(config)  # fp32: two more than costs counts
    if kind == "q4_0-q6_k":
        matrices = costs.weight_bytes(config, "int4-b32", embed_format="bf16") - _table_elements(config) * 2
        return round(matrices + norms + _table_elements(config) * _Q6_K_BITS / 8)
    format, embed = GGUF_FORMATS[kind]
    return costs.weight_bytes(config, format, embed_format=embed) + norms


def openvino_bytes(config: TextConfig) -> int:
    """Return the bytes of the weights of OpenVINO's export in int4, groups of 128, the table in int8."""
    matrices = sum(rows * columns for rows, columns in costs.matrix_shapes(config)) * _OPENVINO_BITS / 8
    table = _table_elements(config) + 2 * config.vocab_size
    return round(matrices + table + 2 * costs.num_norm_parameters(config))


def decode_bytes(config: TextConfig, weight_bytes: int, context: float) -> float:
    """Return the bytes one decode step reads: the weights, and bf16 keys and values of `context` tokens."""
    return weight_bytes + costs.kv_bytes(config, round(context))


def matmul_macs(config: TextConfig) -> int:
    """Return the multiply-adds a token takes in the matrices of the blocks, without attention and head."""
    return sum(rows * columns for rows, columns in costs.matrix_shapes(config))


def attention_macs(config: TextConfig, tokens: int) -> int:
    """Return the multiply-adds of attention for a prompt of `tokens` tokens: keys seen, times q.k and p.v."""
    per_key = 2 * config.num_heads * config.head_dim
    return per_key * sum(_keys_seen(tokens, spec.window) for spec in config.layers)


def head_macs(config: TextConfig) -> int:
    """Return the multiply-adds of one row of logits."""
    return _table_elements(config)


def prefill_macs(config: TextConfig, tokens: int) -> int:
    """Return the multiply-adds of a prompt: matrices, attention and the head's one row."""
    return tokens * matmul_macs(config) + attention_macs(config, tokens) + head_macs(config)


def _keys_seen(tokens: int, window: int | None) -> int:
    """Sum over the queries of a prompt of the keys each sees."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def _table_elements(config: TextConfig) -> int:
    return config.vocab_size * config.model_dim
