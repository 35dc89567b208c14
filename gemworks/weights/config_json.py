"""config.json of Hugging Face <-> TextConfig, in its three generations and two forms (spec 2).

    flat     model_type gemma3_text: 270M, 1B, and what we write
    nested   model_type gemma3 or shieldgemma2: the text half in text_config, sparse, so class defaults apply

    1  rope_theta, rope_local_base_freq, rope_scaling (global layers only), sliding_window_pattern
    2  the same, and layer_types
    3  rope_parameters by layer type (transformers 5), and layer_types

Every field is used, required to have the value Gemma 3 has, or known to be without effect here (the tables of
config_fields.py). A field that is none of these, or that contradicts another, is refused by name: a model that runs
although its config said something else is wrong in ways no test of ours would see.
"""

import json
from pathlib import Path
from typing import Any

from gemworks.errors import CheckpointError, ConfigError, StorageError
from gemworks.model.config import LayerSpec, TextConfig
from gemworks.weights.config_fields import (
    DEFAULTS,
    IGNORED_FIELDS,
    NESTED_FIELDS,
    OTHER_MODELS,
    REFUSED_FIELDS,
    REQUIRED_VALUES,
)

# Largest config, index or tokenizer_config that is read; the official ones are far below.
MAX_JSON_BYTES = 100_000_000

# Bounds the list that is made of them; the largest release has 62.
_MAX_LAYERS = 10_000

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_SHOWN = 10


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises StorageError if it cannot be read, CheckpointError if it is not an object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} must be smaller than {MAX_JSON_BYTES:,} bytes to be read.")
        text = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        found = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} must hold JSON, and it does not ({error}).\nFetch it again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, and it holds a {type(found).__name__}.\nFetch it.")
    return found


def text_config_from_json(data: dict[str, Any], where: str) -> TextConfig:
    """The text decoder that a config.json describes. `where` is the file as the user knows it.

    Raises one CheckpointError that names every field that is unknown, contradictory or not Gemma 3's.
    """
    problems: list[str] = []
    fields = _text_fields(data, where, problems)
    _check_known(fields, problems)
    reader = _Fields(fields, problems)
    sizes = {
        "vocab_size": reader.count("vocab_size"),
        "model_dim": reader.count("hidden_size"),
        "ffw_dim": reader.count("intermediate_size"),
        "num_heads": reader.count("num_attention_heads"),
        "num_kv_heads": reader.count("num_key_value_heads"),
        "head_dim": reader.count("head_dim"),
        "max_positions": reader.count("max_position_embeddings"),
    }
    query_scalar = reader.positive("query_pre_attn_scalar")
    norm_eps = reader.positive("rms_norm_eps")
    tied = reader.flag("tie_word_embeddings")
    layers = _layers(reader)
    if problems:
        raise CheckpointError(_refusal(where, problems))
    try:
        return TextConfig(**sizes, query_scale=query_scalar**-0.5, layers=layers, norm_eps=norm_eps, tied_head=tied)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def eos_ids_from_json(data: dict[str, Any]) -> tuple[int, ...] | None:
    """The ids that end an answer according to a config.json or generation_config.json, or None if it names none."""
    stated = data.get("eos_token_id")
    if stated is None and isinstance(data.get("text_config"), dict):
        stated = data["text_config"].get("eos_token_id")
    ids: list[Any] = stated if isinstance(stated, list) else [stated]
    return tuple(ids) if ids and all(type(one) is int and one >= 0 for one in ids) else None


def json_from_text_config(config: TextConfig, *, dtype: str = "bfloat16") -> dict[str, Any]:
    """A flat config.json that transformers 4.50 and all later ones read alike: old and new fields side by side."""
    local = config.local_spec or LayerSpec(window=config.max_positions, rope_base=DEFAULTS["rope_local_base_freq"])
    global_ = config.global_spec or LayerSpec(window=None, rope_base=DEFAULTS["rope_theta"])
    scalar = config.query_scale**-2
    data = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **REQUIRED_VALUES,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "use_cache": True,
        "initializer_range": 0.02,
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.ffw_dim,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        # transformers 5 wants an integer; 256**-0.5 squared and inverted is one only after rounding.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "sliding_window": local.window,
        "layer_types": [_LOCAL if spec.is_local else _GLOBAL for spec in config.layers],
        "rope_theta": global_.rope_base,
        "rope_local_base_freq": local.rope_base,
        "rope_scaling": {"rope_type": "linear", "factor": global_.rope_scale} if global_.rope_scale != 1 else None,
        "rope_parameters": {_GLOBAL: _rope_json(global_), _LOCAL: _rope_json(local)},
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if (pattern := _pattern_of(config)) is not None:
        data["sliding_window_pattern"] = pattern
    return data


def _rope_json(spec: LayerSpec) -> dict[str, Any]:
    if spec.rope_scale == 1:
        return {"rope_type": "default", "rope_theta": spec.rope_base}
    return {"rope_type": "linear", "rope_theta": spec.rope_base, "factor": spec.rope_scale}


def _pattern_of(config: TextConfig) -> int | None:
    """The n for which layer i is global where (i + 1) % n == 0 (6 if it fits), or None if there is none."""
    found = [spec.is_local for spec in config.layers]
    for pattern in (6, *range(1, len(found) + 2)):
        if found == _is_local_by_pattern(pattern, len(found)):
            return pattern
    return None


def _is_local_by_pattern(pattern: int, num_layers: int) -> list[bool]:
    return [(layer + 1) % pattern != 0 for layer in range(num_layers)]


def _text_fields(data: dict[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """The text half's fields, of either form. Refuses other models at once, by their names."""
    model_type = data.get("model_type")
    if model_type in ("gemma3", "shieldgemma2"):
        text = data.get("text_config")
        if not isinstance(text, dict):
            raise CheckpointError(
                f'{where}: model_type "{model_type}" must come with a text_config, got {_short(text)}.\n'
                "Fetch config.json again."
            )
        outer = {key: value for key, value in data.items() if key not in NESTED_FIELDS}
        _check_known(outer, problems)
        tied = [half.get("tie_word_embeddings") for half in (data, text)]
        if None not in tied and tied[0] != tied[1]:
            problems.append(
                f"tie_word_embeddings  is {_short(data['tie_word_embeddings'])} above and "
                f"{_short(text['tie_word_embeddings'])} in text_config"
            )
        for key in outer.keys() & DEFAULTS.keys():
            if outer[key] != (inner := text.get(key, DEFAULTS[key])):
                problems.append(f"{key}  is {_short(outer[key])} above, but {_short(inner)} in text_config")
        shared = {key: data[key] for key in ("tie_word_embeddings",) if key in data}
        data, model_type = {**shared, **text}, text.get("model_type", "gemma3_text")
    if model_type != "gemma3_text":
        name = OTHER_MODELS.get(str(model_type), "another kind of model")
        raise CheckpointError(
            f'{where}: model_type must be "gemma3_text" or "gemma3", got {_short(model_type)}.\n'
            f"This is {name}, and Gemworks runs Gemma 3. Pull one by name, as in gemma3:1b."
        )
    return data


def _check_known(fields: dict[str, Any], problems: list[str]) -> None:
    """Note every field that nobody knows, or that asks for what Gemma 3 does not have."""
    for key, value in fields.items():
        if key in REFUSED_FIELDS and value not in (None, False, {}, []):
            problems.append(f"{key}  is {_short(value)}: {REFUSED_FIELDS[key]}")
        elif key in REQUIRED_VALUES and value != REQUIRED_VALUES[key]:
            problems.append(f"{key}  is {_short(value)}, wants {_short(REQUIRED_VALUES[key])}")
        elif not (key in DEFAULTS or key in REQUIRED_VALUES or key in REFUSED_FIELDS or key in IGNORED_FIELDS):
            problems.append(f"{key}  is {_short(value)}: unknown field")


class _Fields:
    """Typed reading of a config's fields, with the class defaults; what does not fit is noted in `problems`."""

    def __init__(self, fields: dict[str, Any], problems: list[str]):
        self.fields = fields
        self.problems = problems

    def stated(self, key: str) -> Any:
        """The field, or None if it is absent or null."""
        return self.fields.get(key)

    def count(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self.fields.get(key, DEFAULTS[key])
        if type(value) is int and 1 <= value < 2**31:
            return value
        self.problems.append(f"{key}  is {_short(value)}, wants a whole number of at least 1")
        return DEFAULTS[key]

    def positive(self, key: str) -> float:
        """A number above 0."""
        value = self.fields.get(key, DEFAULTS[key])
        return self.checked(key, value, DEFAULTS[key])

    def checked(self, label: str, value: Any, instead: float) -> float:
        """`value` if it is a finite number above 0; else noted, and `instead`."""
        if type(value) in (int, float) and 0 < value < 1e300:
            return float(value)
        self.problems.append(f"{label}  is {_short(value)}, wants a number above 0")
        return float(instead)

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self.fields.get(key, DEFAULTS[key])
        if isinstance(value, bool):
            return value
        self.problems.append(f"{key}  is {_short(value)}, wants true or false")
        return bool(DEFAULTS[key])


def _layers(reader: _Fields) -> tuple[LayerSpec, ...]:
    problems_before = len(reader.problems)
    num_layers = reader.count("num_hidden_layers")
    if num_layers > _MAX_LAYERS:
        reader.problems.append(f"num_hidden_layers  is {num_layers}, wants at most {_MAX_LAYERS}")
    if len(reader.problems) > problems_before:
        return ()  # nothing to say about layers whose number is not known
    is_local = _is_local(reader, num_layers)
    window = reader.count("sliding_window") if any(is_local) else 1
    local_base, local_scale = _rope(reader, _LOCAL, "rope_local_base_freq", old_scaling=None)
    global_base, global_scale = _rope(reader, _GLOBAL, "rope_theta", old_scaling="rope_scaling")
    local = LayerSpec(window=window, rope_base=local_base, rope_scale=local_scale)
    global_ = LayerSpec(window=None, rope_base=global_base, rope_scale=global_scale)
    return tuple(local if one else global_ for one in is_local)


def _is_local(reader: _Fields, num_layers: int) -> list[bool]:
    """Per layer, true where it is local. layer_types wins; sliding_window_pattern must agree with it."""
    patterns = {key: reader.stated(key) for key in ("sliding_window_pattern", "_sliding_window_pattern")}
    for key, value in patterns.items():
        if value is not None and (type(value) is not int or value < 1):
            reader.problems.append(f"{key}  is {_short(value)}, wants a whole number of at least 1")
            return [True] * num_layers
    public, private = patterns.values()
    by_pattern = _is_local_by_pattern(public or DEFAULTS["sliding_window_pattern"], num_layers)
    types = reader.stated("layer_types")
    if types is None:
        # transformers never reads the private one; where it would make a difference nobody can say what was meant.
        if private is not None and by_pattern != _is_local_by_pattern(private, num_layers):
            reader.problems.append(
                f"_sliding_window_pattern  is {private}, but sliding_window_pattern is {_short(public)} (6 if absent)"
            )
        return by_pattern
    if not isinstance(types, list) or not all(one in (_LOCAL, _GLOBAL) for one in types):
        odd = [one for one in types if one not in (_LOCAL, _GLOBAL)][:1] if isinstance(types, list) else types
        reader.problems.append(f'layer_types  holds {_short(odd)}, wants "{_LOCAL}" or "{_GLOBAL}" for every layer')
        return by_pattern
    if len(types) != num_layers:
        reader.problems.append(f"layer_types  has {len(types)} entries, but num_hidden_layers is {num_layers}")
        return by_pattern
    is_local = [one == _LOCAL for one in types]
    if public is not None and is_local != by_pattern:
        layer = next(i for i in range(num_layers) if is_local[i] != by_pattern[i])
        reader.problems.append(
            f"sliding_window_pattern  is {public}, but layer_types makes layer {layer} {types[layer]}"
        )
    return is_local


def _rope(reader: _Fields, kind: str, base_field: str, *, old_scaling: str | None) -> tuple[float, float]:
    """(base, scale) of one kind of layer; the old fields must agree with rope_parameters where both are stated."""
    default = DEFAULTS[base_field]
    old_base = reader.stated(base_field)
    if old_base is not None:
        old_base = reader.checked(base_field, old_base, default)
    parameters = reader.stated("rope_parameters")
    new = _rope_of_kind(reader, parameters, kind)
    label = f"rope_parameters.{kind}"
    base = new.get("rope_theta")
    base = (old_base or default) if base is None else reader.checked(f"{label}.rope_theta", base, default)
    if old_base is not None and base != old_base:
        reader.problems.append(f"{base_field}  is {_short(old_base)}, but {label}.rope_theta is {_short(base)}")
    scale = _rope_scale(reader, label, new)
    old = reader.stated(old_scaling) if old_scaling else None
    if old is not None and not isinstance(old, dict):
        reader.problems.append(f"{old_scaling}  is {_short(old)}, wants null or an object")
    elif old is not None:
        old_scale = _rope_scale(reader, str(old_scaling), old)
        if new.keys() & {"rope_type", "type", "factor"} and None not in (scale, old_scale) and scale != old_scale:
            reader.problems.append(f"{old_scaling}  divides positions by {old_scale:g}, but {label} by {scale:g}")
        scale = old_scale
    return base, scale or 1.0


def _rope_of_kind(reader: _Fields, parameters: Any, kind: str) -> dict[str, Any]:
    """rope_parameters of one kind of layer; {} where there are none."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        reader.problems.append(f"rope_parameters  is {_short(parameters)}, wants an object")
        return {}
    odd = sorted(set(parameters) - {_LOCAL, _GLOBAL})
    if odd and kind == _LOCAL:  # once, not for both kinds
        reader.problems.append(f'rope_parameters  holds {_short(odd)}, wants only "{_GLOBAL}" and "{_LOCAL}"')
    one = parameters.get(kind)
    if one is None:
        return {}
    if not isinstance(one, dict):
        reader.problems.append(f"rope_parameters.{kind}  is {_short(one)}, wants an object")
        return {}
    return one


def _rope_scale(reader: _Fields, label: str, rope: dict[str, Any]) -> float | None:
    """What positions are divided by: 1 for rope_type default, `factor` for linear; None where that is not sound."""
    kinds = {rope[key] for key in ("rope_type", "type") if isinstance(rope.get(key), str)} or {"default"}
    if len(kinds) > 1 or not kinds <= {"default", "linear"}:
        reader.problems.append(f'{label}.rope_type  is {_short(sorted(kinds))}, wants "default" or "linear"')
        return None
    neutral = {"rope_type", "type", "rope_theta", "factor"}
    if odd := {key: value for key, value in rope.items() if key not in neutral and value is not None}:
        reader.problems.append(f"{label}  holds {_short(odd)}: unknown to Gemma 3's rope")
    if kinds == {"linear"}:
        return reader.checked(f"{label}.factor", rope.get("factor"), 0.0) or None
    if rope.get("factor") not in (None, 1, 1.0):
        reader.problems.append(f'{label}.factor  is {_short(rope["factor"])}, but its rope_type is "default"')
        return None
    return 1.0


def _refusal(where: str, problems: list[str]) -> str:
    count = "1 field" if len(problems) == 1 else f"{len(problems)} fields"
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    hint = "Gemworks runs Gemma 3 as released; a field it does not honour would change the answers unseen."
    if any(problem.startswith(("quantization", "compression")) for problem in problems):
        hint = "Use the bf16 release of this model, or a Q4_0 or Q8_0 GGUF."
    elif any(problem.endswith("unknown field") for problem in problems):
        hint = "If a field has no effect on the answers, remove it from config.json; else this model is not Gemma 3."
    return "\n".join([f"{where}: {count} cannot be honoured.", *lines, hint])


def _short(value: Any) -> str:
    """A value as JSON writes it, cut to a line."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."
