"""GGUF metadata <-> TextConfig, for llama.cpp's architecture "gemma3". Facts of llama.cpp are as of the tree that
llama-cpp-python 0.3.36 builds.

A file carries the keys below; what it leaves out has the default here. The vocabulary, the head and the width of the
head's rows are never keys: the tensors decide.

    gemma3. key                              field              when absent, and why
    context_length                           max_positions      refused
    embedding_length                         model_dim          refused
    block_count                              layers             refused
    feed_forward_length                      ffw_dim            refused
    attention.head_count                     num_heads          refused
    attention.head_count_kv                  num_kv_heads       num_heads: llama.cpp's rule
    attention.key_length, .value_length      head_dim           the length of blk.0.attn_q_norm.weight
    attention.layer_norm_rms_epsilon         norm_eps           1e-6: Ollama's converter leaves it out
    attention.sliding_window                 window             every layer global: llama.cpp's rule
    attention.sliding_window_pattern         which are global   6: llama.cpp's converter never writes it
    rope.freq_base                           global rope_base   1e6: Ollama's converter leaves it out
    rope.freq_base_swa                       local rope_base    1e4: llama.cpp's converter never writes it
    rope.scaling.type, .factor               global rope_scale  8 if context_length >= 131072, else 1: Ollama's
                                                                converter leaves it out, llama.cpp's never does

Ollama also calls the bases rope.global.freq_base and rope.local.freq_base. A pattern is a period p (layer i is global
where i % p == p - 1; 0: none is) or one boolean a layer (true: local).

The scale of the queries is in no key. Every runtime derives it, and so do we:

    62 layers (27B)   (embedding_length // head_count) ** -0.5     = 168 ** -0.5
    otherwise         key_length ** -0.5

Two keys for one fact that differ, a key of a feature Gemma 3 does not have, and a key this table does not know are
each an error that names the key.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemworks.errors import CheckpointError, ConfigError
from gemworks.model.config import LayerSpec, TextConfig
from gemworks.weights.gguf_file import TensorInfo, ValueType

ARCHITECTURE = "gemma3"
EMBED, HEAD, QUERY_NORM = "token_embd.weight", "output.weight", "blk.0.attn_q_norm.weight"

NUM_LAYERS_27B = 62
LONG_CONTEXT = 131_072

# Known keys that change nothing in the text model, and why.
_IGNORED = {
    "vocab_size": "the rows of token_embd.weight decide",
    "rope.scaling.original_context_length": "of use to YaRN only",
    "rope.scaling.finetuned": "a remark about the training",
}
_IGNORED_PREFIXES = ("vision.", "mm.")  # the vision half, which Ollama keeps in the same file

# Keys of features that Gemma 3 lacks: harmless at one value, refused at any other.
_ONLY = {
    "final_logit_softcapping": 0,
    "attn_logit_softcapping": 0,
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
}

# What other architectures are, for the refusal.
_NOT_GEMMA3 = {
    "clip": "the vision half of a model (mmproj); point at the file of its text half",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4",
    "gemma2": "Gemma 2",
    "gemma-embedding": "EmbeddingGemma",
    "gemma": "Gemma 1",
}


def text_config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> TextConfig:
    """The config that the metadata and the tensor table of a GGUF file describe.

    `where` begins every message. Raises CheckpointError for another architecture, and for a key that is missing,
    contradictory, of the wrong type, or unknown; sizes are bounded by the tensors before anything is built from them.
    """
    _check_kind(metadata, where)
    keys = _Keys(metadata, where)
    num_layers = keys.integer("block_count")
    if not 1 <= num_layers <= len(tensors):
        raise keys.error("block_count", f"must be 1 to the {len(tensors)} tensors of the file, got {num_layers:,}")
    if EMBED not in tensors:
        raise CheckpointError(f"{where}: tensor {EMBED} must be there, and is not.\nThe file holds no language model.")
    num_heads = keys.integer_of_layers("attention.head_count", num_layers)
    head_dim = _head_dim(keys, tensors)
    model_dim = keys.integer("embedding_length")
    max_positions = keys.integer("context_length")
    fields = {
        "vocab_size": tensors[EMBED].shape[0],
        "model_dim": model_dim,
        "ffw_dim": keys.integer_of_layers("feed_forward_length", num_layers),
        "num_heads": num_heads,
        "num_kv_heads": keys.integer_of_layers("attention.head_count_kv", num_layers, num_heads),
        "head_dim": head_dim,
        "layers": _layers(keys, num_layers, max_positions),
        "max_positions": max_positions,
        "norm_eps": keys.number(("attention.layer_norm_rms_epsilon",), 1e-6),
        "tied_head": HEAD not in tensors,
    }
    keys.refuse_rest()
    try:
        return TextConfig(**fields, query_scale=query_scale(model_dim, num_heads, head_dim, num_layers))
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}\nThe metadata does not describe a Gemma 3.") from error


def query_scale(model_dim: int, num_heads: int, head_dim: int, num_layers: int) -> float:
    """The factor on q.k that GGUF runtimes derive: by D // H for 62 layers (27B: 168 ** -0.5), else by the head."""
    width = model_dim // max(num_heads, 1) if num_layers == NUM_LAYERS_27B else head_dim
    return float(max(width, 1)) ** -0.5


def metadata_from_text_config(config: TextConfig) -> dict[str, tuple[ValueType, Any]]:
    """The gemma3.* keys of `config`, ready to be written: key -> (type, value). Every key of the table is there.

    Raises ConfigError if GGUF cannot say it: a query scale that runtimes would not derive, or scaled local positions.
    """
    num_layers = len(config.layers)
    derived = query_scale(config.model_dim, config.num_heads, config.head_dim, num_layers)
    if config.query_scale != derived:
        raise ConfigError(
            f"query_scale must be {derived:.6g} in a GGUF, got {config.query_scale:.6g}.\n"
            f"GGUF has no key for it: runtimes take head_dim ** -0.5, and (D // H) ** -0.5 for {NUM_LAYERS_27B} "
            "layers. Save as safetensors instead."
        )
    local, global_ = config.local_spec, config.global_spec
    if local and local.rope_scale != 1:
        raise ConfigError(
            f"rope_scale of local layers must be 1 in a GGUF, got {local.rope_scale:g}. Save as safetensors instead."
        )
    u32, f32 = ValueType.UINT32, ValueType.FLOAT32
    keys = {
        "context_length": (u32, config.max_positions),
        "embedding_length": (u32, config.model_dim),
        "block_count": (u32, num_layers),
        "feed_forward_length": (u32, config.ffw_dim),
        "attention.head_count": (u32, config.num_heads),
        "attention.head_count_kv": (u32, config.num_kv_heads),
        "attention.key_length": (u32, config.head_dim),
        "attention.value_length": (u32, config.head_dim),
        "attention.layer_norm_rms_epsilon": (f32, config.norm_eps),
        # llama.cpp takes a missing window for "no local layers" and then ignores the pattern: always write one.
        "attention.sliding_window": (u32, local.window if local else config.max_positions),
        "attention.sliding_window_pattern": _pattern(config),
        "rope.freq_base": (f32, global_.rope_base if global_ else 1e6),
        "rope.freq_base_swa": (f32, local.rope_base if local else 1e4),
        "rope.scaling.type": (ValueType.STRING, "linear"),
        "rope.scaling.factor": (f32, global_.rope_scale if global_ else 1.0),
    }
    return {f"{ARCHITECTURE}.{key}": value for key, value in keys.items()}


def _pattern(config: TextConfig) -> tuple[ValueType, Any]:
    """The shortest period that gives the layers, 6 first (what runtimes assume); else one boolean a layer."""
    is_local = [spec.is_local for spec in config.layers]
    for period in (6, *range(len(is_local) + 1)):
        if is_local == _locals_of_period(period, len(is_local)):
            return ValueType.UINT32, period
    return ValueType.ARRAY, np.array(is_local)


def _locals_of_period(period: int, num_layers: int) -> list[bool]:
    return [period == 0 or i % period != period - 1 for i in range(num_layers)]


def _check_kind(metadata: Mapping[str, Any], where: str) -> None:
    """Refuse what is not a whole Gemma 3 model: another architecture, an adapter, a part of a split file."""
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        known = _NOT_GEMMA3.get(str(architecture))
        raise CheckpointError(
            f"{where}: general.architecture must be {ARCHITECTURE}, got {_short(architecture)}.\n"
            + (f"This is {known}." if known else "Gemworks runs Gemma 3 models only.")
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise CheckpointError(
            f"{where}: general.type must be model, got {_short(kind)}.\nPoint at the model it belongs to."
        )
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(
            f"{where}: split.count must be 1, got {parts}.\nMerge the parts with `llama-gguf-split --merge` first."
        )


def _head_dim(keys: "_Keys", tensors: Mapping[str, TensorInfo]) -> int:
    norm = tensors.get(QUERY_NORM)
    head_dim = keys.integer("attention.key_length", norm.shape[0] if norm else None)
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        keys.same(key, head_dim, "attention.key_length")
    for key in ("rope.dimension_count", "rope.dimension_count_swa"):
        keys.same(key, head_dim, "attention.key_length")
    return head_dim


def _layers(keys: "_Keys", num_layers: int, max_positions: int) -> tuple[LayerSpec, ...]:
    window = keys.integer("attention.sliding_window", 0)
    is_local = _is_local(keys, num_layers, has_window=window > 0)
    local_base = keys.number(("rope.freq_base_swa", "rope.local.freq_base"), 1e4)
    global_base = keys.number(("rope.freq_base", "rope.global.freq_base"), 1e6)
    local = LayerSpec(window=window, rope_base=local_base)
    global_ = LayerSpec(window=None, rope_base=global_base, rope_scale=_rope_scale(keys, max_positions))
    return tuple(local if here else global_ for here in is_local)


def _is_local(keys: "_Keys", num_layers: int, *, has_window: bool) -> list[bool]:
    key = "attention.sliding_window_pattern"
    pattern = keys.take(key, 6)
    if isinstance(pattern, np.ndarray):
        if len(pattern) != num_layers:
            raise keys.error(key, f"must have one entry for each of {num_layers} layers, got {len(pattern)}")
        is_local = [bool(entry) for entry in pattern]
    elif type(pattern) is int and pattern >= 0:
        is_local = _locals_of_period(pattern, num_layers)
    else:
        raise keys.error(key, f"must be a period or one boolean a layer, got {_short(pattern)}")
    return is_local if has_window else [False] * num_layers


def _rope_scale(keys: "_Keys", max_positions: int) -> float:
    kind = keys.take("rope.scaling.type", None)
    if kind not in (None, "linear", "none"):
        raise keys.error("rope.scaling.type", f"must be linear or none, got {_short(kind)}")
    absent = 8.0 if kind is None and max_positions >= LONG_CONTEXT else 1.0 if kind != "linear" else None
    factor = keys.number(("rope.scaling.factor", "rope.scale_linear"), absent)
    if kind == "none" and factor != 1:
        raise keys.error("rope.scaling.factor", f"must be 1 where rope.scaling.type is none, got {factor:g}")
    return factor


class _Keys:
    """The gemma3.* keys of a file, each taken once; what nobody took is refused at the end."""

    def __init__(self, metadata: Mapping[str, Any], where: str):
        prefix = f"{ARCHITECTURE}."
        self.left = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        self.where = where

    def error(self, key: str, text: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}: {ARCHITECTURE}.{key} {text}.\n"
            "The file was made by a converter that Gemworks does not know, or is damaged."
        )

    def take(self, key: str, default: Any) -> Any:
        return self.left.pop(key, default)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.take(key, default)
        if value is None:
            raise self.error(key, "must be there, and is not")
        if type(value) is not int or value < 0:
            raise self.error(key, f"must be a whole number, got {_short(value)}")
        return value

    def integer_of_layers(self, key: str, num_layers: int, default: int | None = None) -> int:
        """A number that may be written once for each layer; Gemma 3 has the same in all."""
        value = self.left.get(key)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            if len(value) != num_layers or np.any(value != value[0]):
                raise self.error(key, f"must be one number or {num_layers} equal ones, got {_short(value[:99])}")
            self.left[key] = int(value[0])
        return self.integer(key, default)

    def number(self, names: tuple[str, ...], default: float | None) -> float:
        """A positive number under any of its names, which must agree where more than one is there."""
        found = {key: self.left.pop(key) for key in names if key in self.left}
        if not found and default is None:
            raise self.error(names[0], "must be there, and is not")
        for key, value in found.items():
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise self.error(key, f"must be a positive number, got {_short(value)}")
        if len(set(found.values())) > 1:
            values = " and ".join(f"{value:g}" for value in found.values())
            raise self.error(names[0], f"and {ARCHITECTURE}.{names[1]} must be equal, got {values}")
        return float(next(iter(found.values()), default or 0.0))

    def same(self, key: str, wanted: int, other: str) -> None:
        value = self.take(key, wanted)
        if type(value) is not int or value != wanted:
            raise self.error(key, f"must equal {other}, which is {wanted}, got {_short(value)}")

    def refuse_rest(self) -> None:
        for key, value in self.left.items():
            if key in _IGNORED or key.startswith(_IGNORED_PREFIXES):
                continue
            if key not in _ONLY:
                raise self.error(key, "is not a key of Gemma 3")
            if isinstance(value, np.ndarray) or value != _ONLY[key]:
                raise self.error(key, f"must be {_ONLY[key]}, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
