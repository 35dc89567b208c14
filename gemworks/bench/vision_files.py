"""Files for `gemworks bench vision`: a vision half of random weights at the real shape, and llama.cpp's form of it.

    model.safetensors, config.json     bf16, under the published names; the decoder is tiny's, so that its width fits
    gguf/mmproj.gguf, gguf/text.gguf   the same in F16, as it is published, and tiny's decoder, which llama.cpp wants

Weights are wide enough that a query prefers some keys (scores of standard deviation 2) and that every branch counts.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemworks.model.vision_config import VisionConfig
from gemworks.weights.atomic import replacing
from gemworks.weights.config_json import read_json
from gemworks.weights.config_vision import json_from_vision_config
from gemworks.weights.convert import convert
from gemworks.weights.hub import TINY
from gemworks.weights.names import expected_vision_shapes, gguf_from_vision, hf_from_vision
from gemworks.weights.safetensors_write import TensorSource, write_shards

_DTYPES = {2: "BF16", 4: "F32"}


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return one tensor of the vision half: matrices in bf16, norms and biases in fp32."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    array = rng.standard_normal(shape, np.float32)
    if len(shape) == 1:
        array *= np.float32(0.1)
        return array + np.float32(name.endswith("norm.weight"))
    if name == "vision.position":
        return (array * np.float32(0.5)).astype(ml_dtypes.bfloat16)
    inputs = shape[0] if name == "projector.weight" else int(np.prod(shape[1:]))
    spread = 1.4 if ".attn.q." in name or ".attn.k." in name else 0.5
    return (array * np.float32(spread * inputs**-0.5)).astype(ml_dtypes.bfloat16)


def make_vision(folder: Path, config: VisionConfig, say: Callable[[str], None]) -> Path:
    """Write the safetensors form to `folder`, unless it is there, and return it."""
    text = _text_config()
    about = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
    } | json_from_vision_config(config)
    if (folder / "config.json").is_file() and read_json(folder / "config.json") == about:
        return folder
    say(f"making {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    sources = [
        TensorSource(hf_from_vision(name, "A"), _DTYPES[4 if len(shape) == 1 else 2], shape, _drawn(name, shape))
        for name, shape in expected_vision_shapes(config, text["hidden_size"]).items()
    ]
    write_shards(folder, sources)
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def make_gguf(folder: Path, config: VisionConfig, say: Callable[[str], None]) -> Path:
    """Write llama.cpp's form below `folder`, unless it is there, and return its folder. Needs the package gguf."""
    import gguf  # pyright: ignore[reportMissingImports]

    out = folder / "gguf"
    if (out / "mmproj.gguf").is_file() and (out / "text.gguf").is_file():
        return out
    say(f"making {out}")
    out.mkdir(parents=True, exist_ok=True)
    shapes = expected_vision_shapes(config, _text_config()["hidden_size"])
    needed = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    with replacing(out / "mmproj.gguf", needed=needed, force=True) as path:
        writer = gguf.GGUFWriter(path, "clip")
        writer.add_clip_projector_type("gemma3")
        writer.add_clip_has_vision_encoder(True)
        writer.add_vision_projection_dim(_text_config()["hidden_size"])
        writer.add_vision_image_size(config.image_size)
        writer.add_vision_patch_size(config.patch_size)
        writer.add_vision_embedding_length(config.model_dim)
        writer.add_vision_feed_forward_length(config.ffw_dim)
        writer.add_vision_head_count(config.num_heads)
        writer.add_vision_block_count(config.num_layers)
        writer.add_vision_attention_layernorm_eps(config.norm_eps)
        writer.add_vision_image_mean([0.5, 0.5, 0.5])
        writer.add_vision_image_std([0.5, 0.5, 0.5])
        writer.add_vision_use_gelu(True)
        for name, shape in shapes.items():
            array = draw(name, shape).astype(np.float32)
            if name == "projector.norm.scale":
                array += 1
            is_half = len(shape) > 1 and name != "vision.position"
            writer.add_tensor(gguf_from_vision(name), array.astype(np.float16 if is_half else np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    # After the vision half, so that it is found beside the text half.
    convert(TINY, out / "text.gguf", outtype="bf16", force=True)
    return out


def _text_config() -> dict[str, Any]:
    """Tiny's decoder."""
    return read_json(TINY / "config.json")["text_config"]


def _drawn(name: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: draw(name, shape)
