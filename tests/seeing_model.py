"""A model with eyes for tests: the text half of `tiny`, which speaks, and a small random vision tower."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from PIL import Image

from gemworks.model.vision_config import VisionConfig
from gemworks.weights.hub import TINY
from gemworks.weights.names import expected_vision_shapes, hf_from_vision
from gemworks.weights.safetensors_write import TensorSource, write_shards

# 16 patches become 4 soft tokens.
EYES = VisionConfig(
    image_size=56, patch_size=14, model_dim=32, ffw_dim=48, num_layers=2, num_heads=2, tokens_per_image=4
)

# Pictures must differ by more than rounding in what the decoder reads: positions and biases drown them otherwise.
_SPREADS = {"vision.position": 0.05, "projector.weight": 1.0}


def save_seeing_model(
    folder: Path, eyes: VisionConfig = EYES, *, seed: int = 0, layers: Sequence[int] = range(6)
) -> Path:
    """Write tiny as a multimodal checkpoint with a seeded tower to `folder` and return it.

    With some of tiny's layers only, its programs are made sooner, and what it says makes no sense.
    """
    from gemworks.weights.checkpoint import open_checkpoint
    from gemworks.weights.names import hf_from_ours

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TINY / name, folder / name)
    text = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    text = text["text_config"] | {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text["layer_types"] = [text["layer_types"][i] for i in layers]
    text["num_hidden_layers"] = len(layers)
    if len(layers) < 6:
        del text["sliding_window_pattern"]
    rng = np.random.default_rng(seed)
    with open_checkpoint(TINY) as checkpoint:
        arrays = {}
        for name in checkpoint.entries:
            if (layer := re.match(r"layers\.(\d+)\.", name)) is None:
                arrays[hf_from_ours(name, "A")] = np.array(checkpoint.read(name))
            elif int(layer[1]) in layers:
                renamed = f"layers.{layers.index(int(layer[1]))}.{name[layer.end() :]}"
                arrays[hf_from_ours(renamed, "A")] = np.array(checkpoint.read(name))
        for name, shape in expected_vision_shapes(eyes, checkpoint.config.model_dim).items():
            spread = _SPREADS.get(name, 0.3)
            arrays[hf_from_vision(name, "A")] = rng.normal(0, spread, shape).astype(ml_dtypes.bfloat16)
        sources = [
            TensorSource(name, {2: "BF16", 4: "F32"}[array.dtype.itemsize], array.shape, lambda array=array: array)
            for name, array in arrays.items()
        ]
        write_shards(folder, sources)
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": eyes.model_dim,
            "image_size": eyes.image_size,
            "intermediate_size": eyes.ffw_dim,
            "num_attention_heads": eyes.num_heads,
            "num_hidden_layers": eyes.num_layers,
            "patch_size": eyes.patch_size,
        },
        "mm_tokens_per_image": eyes.tokens_per_image,
        "boi_token_index": 765,
        "eoi_token_index": 766,
        "image_token_index": 767,
        "eos_token_id": [1, 106],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def some_picture(seed: int = 0, width: int = 60, height: int = 40) -> Image.Image:
    """Return large coloured blocks: another seed, another picture, also when it is scaled down."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
