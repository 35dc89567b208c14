"""The model with its eyes as a directory that Gemworks and transformers (Gemma3ForConditionalGeneration) open."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemworks.model.config import TextConfig
from gemworks.model.vision_config import VisionConfig
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.atomic import replacing
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.generation_json import json_from_generation_defaults
from gemworks.weights.names import expected_shapes, expected_vision_shapes, hf_from_ours, hf_from_vision
from gemworks.weights.safetensors_write import TensorSource, write_shards
from gemworks.weights.save import write_json
from recipes.tiny_standin.saving import GENERATION

_ROOM = 4_000_000  # bytes that the disk must have
_IMAGE_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}


def save_with_eyes(
    out: Path,
    config: TextConfig,
    eyes: VisionConfig,
    arrays: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    card: str,
    *,
    force: bool,
) -> None:
    """Write weights in bf16, configs, tokenizer and card as the directory `out`, in one step.

    `arrays` are by our names, decoder and vision half, with shapes that hold as many elements as the published ones.
    """
    shapes = {hf_from_ours(name, "B"): (name, shape) for name, shape in expected_shapes(config).items()}
    vision_shapes = expected_vision_shapes(eyes, config.model_dim)
    shapes |= {hf_from_vision(name): (name, shape) for name, shape in vision_shapes.items()}
    wanted = {name for name, _ in shapes.values()}
    assert arrays.keys() == wanted, f"not the tensors of the configs: {sorted(arrays.keys() ^ wanted)}"
    tensors = [
        TensorSource(published, "BF16", shape, _produce(arrays[name], shape))
        for published, (name, shape) in shapes.items()
    ]
    ids = {key: tokenizer.id_of(name) for key, name in _IMAGE_TOKENS.items()}
    with replacing(out, needed=_ROOM, force=force, kind="directory") as partial:
        write_json(partial / "config.json", config_json(config, eyes, ids))
        write_json(partial / "generation_config.json", json_from_generation_defaults(GENERATION))
        write_json(partial / "preprocessor_config.json", _preprocessor(eyes))
        write_json(partial / "processor_config.json", _processor(eyes))
        tokenizer.save(partial)
        _name_image_tokens(partial / "tokenizer_config.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        write_shards(partial, tensors)


def config_json(config: TextConfig, eyes: VisionConfig, ids: Mapping[str, int | None]) -> dict[str, Any]:
    """A nested config.json as the released 4B has it; `ids` are those of boi_token, eoi_token and image_token."""
    text = json_from_text_config(config)
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": eyes.model_dim,
        "intermediate_size": eyes.ffw_dim,
        "num_hidden_layers": eyes.num_layers,
        "num_attention_heads": eyes.num_heads,
        "num_channels": eyes.num_channels,
        "image_size": eyes.image_size,
        "patch_size": eyes.patch_size,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": eyes.norm_eps,
        "attention_dropout": 0.0,
        "vision_use_head": False,
    }
    stated = json_from_generation_defaults(GENERATION)
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": vision,
        "mm_tokens_per_image": eyes.tokens_per_image,
        "boi_token_index": ids["boi_token"],
        "eoi_token_index": ids["eoi_token"],
        "image_token_index": ids["image_token"],
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tied_head,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        **{key: stated[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


def _produce(array: np.ndarray, shape: tuple[int, ...]):
    return lambda: np.ascontiguousarray(array.astype(ml_dtypes.bfloat16).reshape(shape))


def _preprocessor(eyes: VisionConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": eyes.image_size, "width": eyes.image_size},
        "image_seq_length": eyes.tokens_per_image,
    }


def _processor(eyes: VisionConfig) -> dict[str, Any]:
    return {"processor_class": "Gemma3Processor", "image_seq_length": eyes.tokens_per_image}


def _name_image_tokens(path: Path) -> None:
    """Say in tokenizer_config.json which tokens are the images', as transformers' processor asks."""
    import json

    data = json.loads(path.read_text(encoding="utf-8"))
    path.with_name("chat_template.jinja").write_text(data["chat_template"], encoding="utf-8")  # for processors
    data |= _IMAGE_TOKENS | {"extra_special_tokens": dict(_IMAGE_TOKENS), "processor_class": "Gemma3Processor"}
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
