"""Published tensor names <-> ours, as one table read in both directions.

Ours are the dotted paths of the model (layers.3.attn.q.weight). Hugging Face files prefix the same suffixes in
several ways (spec 3.1), and GGUF has names of its own:

    A       language_model.model.layers.0...     the hub's multimodal files
    B       model.language_model.layers.0...     multimodal, saved by transformers 4.52 and later
    C       model.layers.0...                    text only (270M, 1B), and what we write
    bare    layers.0...                          a text decoder saved without its head's class
    shield  A or B behind one more `model.`      ShieldGemma 2; transformers 5 saves it as A behind two

For the text model vision and projector tensors are known and skipped (IGNORED); anything else is unknown (None). The
vision half has a table and functions of its own below, read only when an image comes (vision.py). Patterns are
anchored at both ends. Which names must be there, with which shapes, is `expected_shapes`; the check is in strict.py.
"""

import re
from typing import Final, Literal, NamedTuple

from gemworks.model.config import TextConfig
from gemworks.model.vision_config import VisionConfig


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

# Every prefix accepted when reading: the three layouts, a bare decoder, and ShieldGemma's.
_SHIELD_BODY = ("model." + _BODY_PREFIX["A"], "model." + _BODY_PREFIX["B"], "model.model." + _BODY_PREFIX["A"])
_READ_BODY = ("", *_BODY_PREFIX.values(), *_SHIELD_BODY)
_READ_HEAD = ("", "language_model.", "model.language_model.", "model.", "model.model.language_model.")

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


# The vision half (spec 3.3). Axes: E tower width, G its feed-forward, P patches, C channels, s patch side, D decoder.
# Prefixes: vision_tower.[vision_model.] or multi_modal_projector., behind up to two `model.`.
VISION_TABLE: Final = (
    Row("vision.patch.weight", "embeddings.patch_embedding.weight", "v.patch_embd.weight", "E C s s"),
    Row("vision.patch.bias", "embeddings.patch_embedding.bias", "v.patch_embd.bias", "E"),
    Row("vision.position", "embeddings.position_embedding.weight", "v.position_embd.weight", "P E"),
    *(
        Row(
            f"vision.layers.{{i}}.{ours}.{kind}",
            f"encoder.layers.{{i}}.{hf}.{kind}",
            f"v.blk.{{i}}.{gguf}.{kind}",
            axes if kind == "weight" else axes.split()[0],
        )
        for ours, hf, gguf, axes in (
            ("attn_norm", "layer_norm1", "ln1", "E"),
            ("attn.q", "self_attn.q_proj", "attn_q", "E E"),
            ("attn.k", "self_attn.k_proj", "attn_k", "E E"),
            ("attn.v", "self_attn.v_proj", "attn_v", "E E"),
            ("attn.o", "self_attn.out_proj", "attn_out", "E E"),
            ("ffw_norm", "layer_norm2", "ln2", "E"),
            ("ffw.up", "mlp.fc1", "ffn_up", "G E"),
            ("ffw.down", "mlp.fc2", "ffn_down", "E G"),
        )
        for kind in ("weight", "bias")
    ),
    Row("vision.final_norm.weight", "post_layernorm.weight", "v.post_ln.weight", "E"),
    Row("vision.final_norm.bias", "post_layernorm.bias", "v.post_ln.bias", "E"),
    Row("projector.norm.scale", "mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight", "E"),
    # Input width first, and no ".weight" in Hugging Face files.
    Row("projector.weight", "mm_input_projection_weight", "mm.input_projection.weight", "E D"),
)

_HF_VISION_PREFIX = re.compile(
    r"(?:model\.){0,2}(?:(?P<tower>vision_tower\.(?:vision_model\.)?)|multi_modal_projector\.)(?P<rest>.+)"
)
_OURS_VISION = [(_pattern(row.ours), row) for row in VISION_TABLE]
_HF_VISION = [(_pattern(row.hf), row) for row in VISION_TABLE]
_GGUF_VISION = [(_pattern(row.gguf), row) for row in VISION_TABLE]


def _is_projector(row: Row) -> bool:
    return row.ours.startswith("projector.")


def vision_from_hf(name: str) -> str | _Ignored | None:
    """Our name of a vision or projector tensor in a Hugging Face file, None if it is neither.

    IGNORED is SigLIP's pooling head, which transformers saves where the config asks for one and Gemma 3 never reads.
    """
    prefixed = _HF_VISION_PREFIX.fullmatch(name)
    if prefixed is None:
        return None
    is_tower = prefixed["tower"] is not None
    if is_tower and prefixed["rest"].startswith("head."):
        return IGNORED
    found = _lookup(_HF_VISION, prefixed["rest"])
    return found[0].ours.replace("{i}", found[1]) if found and is_tower != _is_projector(found[0]) else None


def vision_from_gguf(name: str) -> str | None:
    """Our name of a tensor in a GGUF file of the vision half (mmproj), None if unknown."""
    found = _lookup(_GGUF_VISION, name)
    return found[0].ours.replace("{i}", found[1]) if found else None


def _vision_row(name: str) -> tuple[Row, str]:
    found = _lookup(_OURS_VISION, name)
    assert found is not None, f"{name} is not a tensor of the vision half"
    return found


def hf_from_vision(name: str, layout: Literal["A", "B"] = "B") -> str:
    """The published name of one of our vision tensors. `name` must be one of ours."""
    row, layer = _vision_row(name)
    outer = "model." if layout == "B" else ""
    inner = "multi_modal_projector." if _is_projector(row) else "vision_tower.vision_model."
    return outer + inner + row.hf.replace("{i}", layer)


def gguf_from_vision(name: str) -> str:
    """The GGUF name of one of our vision tensors. `name` must be one of ours."""
    row, layer = _vision_row(name)
    return row.gguf.replace("{i}", layer)


def expected_vision_shapes(config: VisionConfig, model_dim: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the vision half, our name -> published shape, in file order. `model_dim` is the decoder's."""
    sizes = {
        "E": config.model_dim,
        "G": config.ffw_dim,
        "P": config.num_patches,
        "C": config.num_channels,
        "s": config.patch_size,
        "D": model_dim,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    per_layer = [row for row in VISION_TABLE if "{i}" in row.ours]
    for row in VISION_TABLE:
        if row not in per_layer:
            shapes[row.ours] = tuple(sizes[axis] for axis in row.axes.split())
        elif row is per_layer[0]:
            for layer in range(config.num_layers):
                for one in per_layer:
                    shapes[one.ours.replace("{i}", str(layer))] = tuple(sizes[axis] for axis in one.axes.split())
    return shapes
