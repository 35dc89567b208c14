"""The vision half as GGUF, written with llama.cpp's own package under its names and conventions."""

import ml_dtypes
import numpy as np
import pytest

from gemworks.errors import CheckpointError
from gemworks.model.multimodal import build_vision, encode
from gemworks.model.vision_config import VisionConfig
from gemworks.ops import select
from gemworks.weights.names import expected_vision_shapes, gguf_from_vision
from gemworks.weights.vision import LazyVision, load_vision, vision_config_of

gguf = pytest.importorskip("gguf")

CONFIG = VisionConfig(
    image_size=112, patch_size=14, model_dim=64, ffw_dim=96, num_layers=3, num_heads=4, tokens_per_image=4
)
TEXT_DIM = 96
PACKAGE_NAMES = {
    "attn.q": gguf.MODEL_TENSOR.V_ENC_ATTN_Q,
    "attn.k": gguf.MODEL_TENSOR.V_ENC_ATTN_K,
    "attn.v": gguf.MODEL_TENSOR.V_ENC_ATTN_V,
    "attn.o": gguf.MODEL_TENSOR.V_ENC_ATTN_O,
    "attn_norm": gguf.MODEL_TENSOR.V_ENC_INPUT_NORM,
    "ffw_norm": gguf.MODEL_TENSOR.V_ENC_POST_ATTN_NORM,
    "ffw.up": gguf.MODEL_TENSOR.V_ENC_FFN_UP,
    "ffw.down": gguf.MODEL_TENSOR.V_ENC_FFN_DOWN,
}


def random_arrays():
    rng = np.random.default_rng(0)
    shapes = expected_vision_shapes(CONFIG, TEXT_DIM)
    return {name: rng.normal(0, 0.3, shape).astype(np.float16).astype(np.float32) for name, shape in shapes.items()}


def write(path, arrays, *, kind="f16", is_swapped=False, projector="gemma3", leave_out=""):
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_projector_type(projector)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_image_size(CONFIG.image_size)
    writer.add_vision_patch_size(CONFIG.patch_size)
    writer.add_vision_embedding_length(CONFIG.model_dim)
    writer.add_vision_feed_forward_length(CONFIG.ffw_dim)
    writer.add_vision_head_count(CONFIG.num_heads)
    writer.add_vision_block_count(CONFIG.num_layers)
    writer.add_vision_attention_layernorm_eps(1e-6)
    for ours, array in arrays.items():
        name = gguf_from_vision(ours)
        if leave_out and leave_out in name:
            continue
        if is_swapped:
            name = name.replace("ffn_up", "ffn_x").replace("ffn_down", "ffn_up").replace("ffn_x", "ffn_down")
        array = array + 1 if ours == "projector.norm.scale" else array
        if array.ndim < 2 or kind == "f32" or (kind == "q8_0" and (array.ndim > 2 or array.shape[-1] % 32)):
            writer.add_tensor(name, array.astype(np.float32))
        elif kind == "f16":
            writer.add_tensor(name, array.astype(np.float16))
        elif kind == "bf16":
            bits = array.astype(ml_dtypes.bfloat16).view(np.uint16)
            writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            blocks = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def soft_tokens(vision):
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 3, 112, 112)).astype(np.float32)
    return encode(vision, pixels)[0]


@pytest.fixture(scope="module")
def arrays():
    return random_arrays()


@pytest.fixture(scope="module")
def expected(arrays):
    return soft_tokens(build_vision(CONFIG, TEXT_DIM, lambda name, shape: arrays[name].reshape(shape)))


@pytest.mark.parametrize("is_swapped", [False, True], ids=["today's names", "Google's files"])
@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 1e-5), ("f16", 1e-5), ("bf16", 5e-2), ("q8_0", 5e-2)])
def test_soft_tokens_of_a_file_beside_the_model(arrays, expected, tmp_path, is_swapped, kind, tolerance):
    write(tmp_path / "mmproj-model.gguf", arrays, kind=kind, is_swapped=is_swapped)
    model = tmp_path / "gemma-3-4b-it-q4_0.gguf"
    model.write_bytes(b"")
    assert vision_config_of(model) == vision_config_of(tmp_path) == CONFIG
    got = soft_tokens(load_vision(model, dtype="float32"))
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
    with select.force("tower_layer", "xla"):  # matrices as they are stored, not packed in int8 for the kernel
        layers = LazyVision(tmp_path).get().tower.layers
    assert {str(block.layer.q.weight.dtype) for block in layers} == {"float32" if kind == "f32" else "bfloat16"}


def test_layer_names_are_the_packages():
    for ours, tensor in PACKAGE_NAMES.items():
        name = gguf.TENSOR_NAMES[tensor].format(bid=7)
        for part in ("weight", "bias"):
            assert gguf_from_vision(f"vision.layers.7.{ours}.{part}") == f"{name}.{part}"


def test_what_is_wrong_is_named(arrays, tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(b"")
    assert vision_config_of(model) is None
    with pytest.raises(CheckpointError, match="got one for text only"):
        load_vision(model)
    write(tmp_path / "mmproj.gguf", arrays, leave_out="v.blk.1.ln2")
    with pytest.raises(CheckpointError, match=r"missing  vision.layers.1.ffw_norm.weight .* as v.blk.1.ln2.weight"):
        load_vision(model)
    write(tmp_path / "mmproj.gguf", arrays, projector="pixtral")
    with pytest.raises(CheckpointError, match=r"must be Gemma 3's .* got 'pixtral'"):
        vision_config_of(model)
    write(tmp_path / "mmproj.gguf", arrays)
    write(tmp_path / "mmproj-f32.gguf", arrays)
    with pytest.raises(CheckpointError, match=r"holds mmproj-f32.gguf, mmproj.gguf"):
        load_vision(model)
