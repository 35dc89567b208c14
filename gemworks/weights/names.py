"""Published tensor names <-> ours, as one table read in both directions.

Ours are the dotted paths of the model (layers.3.attn.q.weight). Hugging Face files prefix the same suffixes in
several ways (spec 3.1), and GGUF has names of its own:

    A       language_model.model.layers.0...     the hub's multimodal files
    B       model.language_model.layers.0...     multimodal, saved by transformers 4.52 and later
    C       model.layers.0...                    text only (270M, 1B), and what we write
    bare    layers.0...                          a text decoder saved without its head's class
    shield  A or B behind one more `model.`      ShieldGemma 2

Vision and projector tensors are known and skipped (IGNORED); anything else is unknown (None). Patterns are anchored
at both ends. Which names must be there, and with which shapes, is `expected_shapes`; the check is in strict.py.
"""

import re
from typing import Final, Literal, NamedTuple

from gemworks.model.config import TextConfig


class _Ignored:
    """The type of IGNORED: a name of the vision half, known but not a tensor of the text model."""

    def __repr__(self) -> str:
        return "IGNORED"


IGNORED: Final = _Ignored()

Layout = Literal["A", "B", "C"]


class Row(NamedTuple):
    """One tensor in every naming; {i} is the layer. Axes: V words, D model, F feed-forward, d head, Q H*d, K K*d."""

    ours: str
    hf: str
    gguf: str
    axes: str


HEAD: Final = Row("head.weight", "lm_head.weight", "output.weight", "V D")

TABLE: Final = (
    Row("embed.weight", "embed_tokens.weight", "token_embd.weight", "V D"),
    Row("layers.{i}.attn_pre_norm.scale", "layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", "D"),
    Row("layers.{i}.attn.q.weight", "layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", "Q D"),
    Row("layers.{i}.attn.k.weight", "layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", "K D"),
    Row("layers.{i}.attn.v.weight", "layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", "K D"),
    Row("layers.{i}.attn.o.weight", "layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", "D Q"),
    Row("layers.{i}.attn.q_norm.scale", "layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", "d"),
    Row("layers.{i}.attn.k_norm.scale", "layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", "d"),
    # On the attention output, before the residual add: not Llama's norm of the same name.
    Row(
        "layers.{i}.attn_post_norm.scale",
        "layers.{i}.post_attention_layernorm.weight",
        "blk.{i}.post_attention_norm.weight",
        "D",
    ),
    Row("layers.{i}.ffw_pre_norm.scale", "layers.{i}.pre_feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight", "D"),
    Row("layers.{i}.ffw.gate.weight", "layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", "F D"),
    Row("layers.{i}.ffw.up.weight", "layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", "F D"),
    Row("layers.{i}.ffw.down.weight", "layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", "D F"),
    Row(
        "layers.{i}.ffw_post_norm.scale",
        "layers.{i}.post_feedforward_layernorm.weight",
        "blk.{i}.post_ffw_norm.weight",
        "D",
    ),
    Row("final_norm.scale", "norm.weight", "output_norm.weight", "D"),
)

_BODY_PREFIX: Final[dict[Layout, str]] = {
    "A": "language_model.model.",
    "B": "model.language_model.",
    "C": "model.",
}
_HEAD_PREFIX: Final[dict[Layout, str]] = {"A": "language_model.", "B": "", "C": ""}

# Every prefix accepted when reading: the three layouts, a bare decoder, and ShieldGemma's A and B.
_READ_BODY = ("", *_BODY_PREFIX.values(), *("model." + _BODY_PREFIX[layout] for layout in ("A", "B")))
_READ_HEAD = ("", "language_model.", "model.language_model.", "model.")

_HF_IGNORED = re.compile(r"(?:model\.){0,2}(?:vision_tower|multi_modal_projector)\..+")
_GGUF_IGNORED = re.compile(r"(?:mm|v)\..+")
_NUMBER = r"(0|[1-9][0-9]{0,5})"


def _pattern(template: str) -> re.Pattern[str]:
    """Regex for a table cell; {i} is a layer number without leading zeros."""
    return re.compile(re.escape(template).replace(r"\{i\}", _NUMBER))


_OURS = [(_pattern(row.ours), row) for row in (*TABLE, HEAD)]
_GGUF = [(_pattern(row.gguf), row) for row in (*TABLE, HEAD)]
_HF_BODY = [(_pattern(row.hf), row) for row in TABLE]


def _lookup(patterns: list[tuple[re.Pattern[str], Row]], name: str) -> tuple[Row, str] | None:
    """The row whose pattern is the whole name, and its layer number ("" where there is none)."""
    for pattern, row in patterns:
        if found := pattern.fullmatch(name):
            return row, found.group(1) if pattern.groups else ""
    return None


def ours_from_hf(name: str) -> str | _Ignored | None:
    """Our name of a tensor in a Hugging Face file, IGNORED for the vision half, None if unknown."""
    if _HF_IGNORED.fullmatch(name):
        return IGNORED
    if name in {prefix + HEAD.hf for prefix in _READ_HEAD}:
        return HEAD.ours
    # No name of the table begins with a prefix, so at most one prefix leaves such a name.
    for prefix in _READ_BODY:
        if name.startswith(prefix) and (found := _lookup(_HF_BODY, name[len(prefix) :])):
            row, layer = found
            return row.ours.replace("{i}", layer)
    return None


def ours_from_gguf(name: str) -> str | _Ignored | None:
    """Our name of a tensor in a GGUF file, IGNORED for the vision half (mm.*, v.*), None if unknown."""
    if _GGUF_IGNORED.fullmatch(name):
        return IGNORED
    if found := _lookup(_GGUF, name):
        row, layer = found
        return row.ours.replace("{i}", layer)
    return None


def _row_of(name: str) -> tuple[Row, str]:
    found = _lookup(_OURS, name)
    assert found is not None, f"{name} is not a tensor of the text model"
    return found


def hf_from_ours(name: str, layout: Layout = "C") -> str:
    """The published name of one of our tensors. `name` must be one of ours."""
    row, layer = _row_of(name)
    prefix = _HEAD_PREFIX[layout] if row is HEAD else _BODY_PREFIX[layout]
    return prefix + row.hf.replace("{i}", layer)


def gguf_from_ours(name: str) -> str:
    """The GGUF name of one of our tensors. `name` must be one of ours."""
    row, layer = _row_of(name)
    return row.gguf.replace("{i}", layer)


def expected_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the model has, our name -> shape, in file order. head.weight only where the head is not tied."""
    sizes = {
        "V": config.vocab_size,
        "D": config.model_dim,
        "F": config.ffw_dim,
        "d": config.head_dim,
        "Q": config.num_heads * config.head_dim,
        "K": config.num_kv_heads * config.head_dim,
    }

    def shape(row: Row) -> tuple[int, ...]:
        return tuple(sizes[axis] for axis in row.axes.split())

    per_layer = [row for row in TABLE if "{i}" in row.ours]
    first, last = TABLE[0], TABLE[-1]
    shapes = {first.ours: shape(first)}
    for layer in range(len(config.layers)):
        shapes |= {row.ours.replace("{i}", str(layer)): shape(row) for row in per_layer}
    shapes[last.ours] = shape(last)
    if not config.tied_head:
        shapes[HEAD.ours] = shape(HEAD)
    return shapes


def is_norm(name: str) -> bool:
    """True for norm scales (ours-name): zero-centred in Hugging Face files, stored with 1 added in GGUF."""
    return name.endswith(".scale")
