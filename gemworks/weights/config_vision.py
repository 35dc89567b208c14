"""The vision half of a nested config.json -> VisionConfig (spec 2.4). Absent fields have SigLIP's class defaults."""

from typing import Any, Final

from gemworks.errors import CheckpointError, ConfigError
from gemworks.model.vision_config import VisionConfig
from gemworks.weights.config_fields import IGNORED_FIELDS

# Field -> ours, and the value of a file that leaves it out.
_COUNTS: Final = {
    "hidden_size": ("model_dim", 768),
    "intermediate_size": ("ffw_dim", 3072),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "num_channels": ("num_channels", 3),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
}
_REQUIRED: Final[dict[str, Any]] = {
    "model_type": "siglip_vision_model",
    "hidden_act": "gelu_pytorch_tanh",
    "num_channels": 3,  # what pictures are decoded to
}
_IGNORED: Final = frozenset({"attention_dropout", "vision_use_head", "projection_dim"}) | IGNORED_FIELDS.keys()
_DEFAULT_TOKENS = 256
_LARGEST = 1 << 20


def vision_config_from_json(data: dict[str, Any], where: str) -> VisionConfig | None:
    """Return what a config.json says of the vision half, or None if it has none. `where` is the file in errors.

    Raises one CheckpointError that names every field that is unknown, of a wrong type or not Gemma 3's.
    """
    fields = data.get("vision_config")
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{where}: vision_config must be an object, got {_short(fields)}.\nFetch it again.")
    problems = []
    for key, value in fields.items():
        if key in _REQUIRED and value != _REQUIRED[key]:
            problems.append(f"vision_config.{key}  is {_short(value)}, wants {_short(_REQUIRED[key])}")
        elif key not in _COUNTS and key not in _REQUIRED and key not in _IGNORED and key != "layer_norm_eps":
            problems.append(f"vision_config.{key}  is {_short(value)}: unknown field")
    sizes = {}
    for key, (ours, default) in _COUNTS.items():
        sizes[ours] = value = fields.get(key, default)
        if type(value) is not int or not 1 <= value < _LARGEST:
            problems.append(f"vision_config.{key}  is {_short(value)}, wants a whole number of at least 1")
    tokens, eps = data.get("mm_tokens_per_image", _DEFAULT_TOKENS), fields.get("layer_norm_eps", 1e-6)
    if type(tokens) is not int or not 1 <= tokens < _LARGEST:
        problems.append(f"mm_tokens_per_image  is {_short(tokens)}, wants a whole number of at least 1")
    if type(eps) not in (int, float) or not 0 < eps < 1:
        problems.append(f"vision_config.layer_norm_eps  is {_short(eps)}, wants a number between 0 and 1")
    if problems:
        raise CheckpointError(
            "\n".join(
                [f"{where}: the vision half must be Gemma 3's, and it is not.", *(f"  {one}" for one in problems)]
            )
        )
    try:
        return VisionConfig(**sizes, tokens_per_image=tokens, norm_eps=eps)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def json_from_vision_config(config: VisionConfig) -> dict[str, Any]:
    """Return the fields of a nested config.json that vision_config_from_json reads."""
    fields = {key: getattr(config, ours) for key, (ours, _) in _COUNTS.items()}
    more = {"layer_norm_eps": config.norm_eps, "attention_dropout": 0.0, "vision_use_head": False}
    return {"vision_config": {**_REQUIRED, **fields, **more}, "mm_tokens_per_image": config.tokens_per_image}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
