"""The vision half of a checkpoint: found when asked for, checked whole, mapped, and let go."""

import gc
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from gemworks.errors import CheckpointError
from gemworks.model.config import RELEASED
from gemworks.model.multimodal import build_vision
from gemworks.model.vision_config import SIGLIP_SO400M_896, VisionConfig
from gemworks.ops import select
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.names import (
    IGNORED,
    expected_vision_shapes,
    gguf_from_vision,
    hf_from_ours,
    hf_from_vision,
    ours_from_hf,
    vision_from_gguf,
    vision_from_hf,
)
from gemworks.weights.safetensors_write import TensorSource, write_shards
from gemworks.weights.vision import LazyVision, load_vision, vision_config_of

EYES = VisionConfig(
    image_size=56, patch_size=14, model_dim=64, ffw_dim=96, num_layers=2, num_heads=4, tokens_per_image=4
)
VISION_JSON = {
    "hidden_size": 64,
    "image_size": 56,
    "intermediate_size": 96,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "vision_use_head": False,
}
DTYPES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.float16): "F16"}
SHAPES = expected_vision_shapes(EYES, 64)
FULL_SIZE = expected_vision_shapes(SIGLIP_SO400M_896, 2560)


@pytest.fixture(autouse=True)
def plain_matrices():
    """Arrays as they are stored, not packed for the kernels: that is tests/backend/test_vision_cpu.py's."""
    with select.force("tower_layer", "xla"):
        yield


@pytest.fixture
def save_seeing(tmp_path, tiny_config, weights):
    """save_seeing(dtype=, layout=, change=, config=) -> (directory with both halves, the vision half by our names)."""

    def save(*, dtype=ml_dtypes.bfloat16, layout="A", change=None, config=None, infix=True):
        rng = np.random.default_rng(2)
        arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
        published = {hf_from_vision(name, layout): array for name, array in arrays.items()}
        if not infix:
            published = {name.replace("vision_model.", ""): array for name, array in published.items()}
        if change is not None:
            change(published)
        published |= {hf_from_ours(name, layout): array for name, array in weights.items()}
        data = {
            "model_type": "gemma3",
            "text_config": json_from_text_config(tiny_config),
            "vision_config": dict(VISION_JSON),
            "mm_tokens_per_image": 4,
        }
        if config is not None:
            config(data)
        folder = tmp_path / "seeing"
        folder.mkdir()
        sources = [
            TensorSource(name, DTYPES[array.dtype], array.shape, lambda array=array: array)
            for name, array in published.items()
        ]
        write_shards(folder, sources, shard_bytes=200_000)
        (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
        return folder, arrays

    return save


def leaves_of(vision) -> list[np.ndarray]:
    return jax.tree.leaves(vision)


@pytest.mark.parametrize("layout", ["A", "B"])
@pytest.mark.parametrize("infix", [True, False], ids=["vision_model", "as transformers 5 saves"])
def test_every_array_finds_its_place(save_seeing, layout, infix):
    folder, arrays = save_seeing(layout=layout, infix=infix)
    vision = load_vision(folder)
    assert vision.config == EYES
    by_name = build_vision(EYES, 64, lambda name, shape: arrays[name].astype(np.float32).reshape(shape))
    for got, wanted in zip(leaves_of(vision), leaves_of(by_name), strict=True):
        assert np.array_equal(np.asarray(got, np.float32), wanted)
        assert str(got.dtype) == ("bfloat16" if got.ndim == 2 else "float32")


@pytest.mark.parametrize(
    ("stored", "asked", "matrices"),
    [
        (np.float32, "auto", "float32"),
        (np.float32, "bfloat16", "bfloat16"),
        (np.float16, "auto", "bfloat16"),
        (ml_dtypes.bfloat16, "float32", "float32"),
    ],
)
def test_dtypes(save_seeing, stored, asked, matrices):
    folder, _ = save_seeing(dtype=stored)
    assert {str(a.dtype) for a in leaves_of(load_vision(folder, dtype=asked)) if a.ndim == 2} == {matrices}


def test_the_text_half_still_loads_alone(save_seeing, tiny_config):
    folder, _ = save_seeing()
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config == tiny_config
        assert not any(name.startswith(("vision", "projector")) for name in checkpoint.entries)


def mapped_files(folder: Path) -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count(str(folder))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to see mappings in")
def test_lazy_vision_maps_nothing_before_and_after(save_seeing):
    folder, _ = save_seeing()
    lazy = LazyVision(folder)
    assert not lazy.is_loaded and mapped_files(folder) == 0
    vision = lazy.get()
    assert lazy.is_loaded and lazy.get() is vision
    assert mapped_files(folder) > 0, "matrices were copied, not mapped"
    lazy.free()
    assert not lazy.is_loaded
    del vision
    gc.collect()
    assert mapped_files(folder) == 0
    assert lazy.get().config == EYES


def test_lazy_vision_says_what_is_wrong_when_it_is_asked(tmp_path):
    lazy = LazyVision(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="got one for text only"):
        lazy.get()
    assert not lazy.is_loaded


def test_a_text_model_has_no_eyes(save_model):
    folder = save_model()
    assert vision_config_of(folder) is None
    with pytest.raises(CheckpointError, match="needs a model with a vision half, got one for text only"):
        load_vision(folder)


@pytest.mark.parametrize("size", ["4b", "12b", "27b"])
def test_released_configs_are_the_literal(released_configs, tmp_path, size):
    (tmp_path / "config.json").write_text(json.dumps(released_configs[size]), encoding="utf-8")
    assert vision_config_of(tmp_path) == SIGLIP_SO400M_896
    assert vision_config_of(tmp_path / "model-00001-of-00002.safetensors") == SIGLIP_SO400M_896


@pytest.mark.parametrize("size", ["270m", "1b"])
def test_released_text_models_have_none(released_configs, tmp_path, size):
    (tmp_path / "config.json").write_text(json.dumps(released_configs[size]), encoding="utf-8")
    assert vision_config_of(tmp_path) is None
    assert vision_config_of(tmp_path / "model.gguf") is None


def without(part):
    def change(published):
        for name in [name for name in published if part in name]:
            del published[name]

    return change


def put(name, array):
    return lambda published: published.update({name: array})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("layers.1.mlp.fc2.bias"), ["missing  vision.layers.1.ffw.down.bias", "fetch it again"]),
        (without("multi_modal_projector"), ["missing  projector.norm.scale", "missing  projector.weight"]),
        (without("vision_tower"), ["missing  vision.patch.weight  [64, 3, 14, 14]", "... and"]),
        (put("vision_tower.vision_model.encoder.layers.2.mlp.fc2.bias", np.ones(64, np.float32)), ["unknown  vision"]),
        (put("vision_tower.vision_model.odd", np.ones(3, np.float32)), ["unknown  vision_tower.vision_model.odd"]),
        (
            put("vision_tower.post_layernorm.bias", np.ones(64, np.float32)),
            ["twice    vision.final_norm.bias"],
        ),
        (
            put("multi_modal_projector.mm_input_projection_weight", np.ones((65, 64), np.float32)),
            ["has [65, 64], wants [64, 64]"],
        ),
        (
            put("vision_tower.vision_model.post_layernorm.bias", np.full(64, np.nan, np.float32)),
            ["weights must be finite, got NaN or infinity in vision_tower.vision_model.post_layernorm.bias"],
        ),
    ],
)
def test_what_is_wrong_is_named(save_seeing, change, says):
    folder, _ = save_seeing(change=change)
    with pytest.raises(CheckpointError) as caught:
        load_vision(folder)
    for part in says:
        assert part in str(caught.value)


def test_a_pooling_head_is_skipped(save_seeing):
    """transformers' default config has one, and Gemma 3 reads the tokens before it."""
    folder, _ = save_seeing(change=put("vision_tower.vision_model.head.probe", np.ones((1, 1, 64), np.float32)))
    assert load_vision(folder).config == EYES


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_act": "gelu"}, "vision_config.hidden_act  is 'gelu', wants 'gelu_pytorch_tanh'"),
        ({"model_type": "clip_vision_model"}, "vision_config.model_type"),
        ({"num_channels": 1}, "vision_config.num_channels  is 1, wants 3"),
        ({"hidden_size": "64"}, "vision_config.hidden_size  is '64', wants a whole number"),
        ({"num_hidden_layers": True}, "vision_config.num_hidden_layers  is True"),
        ({"layer_norm_eps": 0}, "vision_config.layer_norm_eps  is 0"),
        ({"rope": 1}, "vision_config.rope  is 1: unknown field"),
        ({"num_attention_heads": 7}, "model_dim must be a multiple of num_heads"),
        ({"patch_size": 13}, "image_size must be a multiple of patch_size"),
    ],
)
def test_configs_of_other_towers_are_refused(save_seeing, fields, says):
    folder, _ = save_seeing(config=lambda data: data["vision_config"].update(fields))
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        vision_config_of(folder)
    assert says in str(caught.value)


@pytest.mark.parametrize("tokens", ["4", 0, 3])
def test_soft_tokens_must_be_a_square(save_seeing, tokens):
    folder, _ = save_seeing(config=lambda data: data.update(mm_tokens_per_image=tokens))
    with pytest.raises(CheckpointError, match="tokens_per_image"):
        vision_config_of(folder)


@pytest.mark.parametrize("layout", ["A", "B"])
def test_every_name_comes_back(layout):
    published = [hf_from_vision(name, layout) for name in FULL_SIZE]
    assert [vision_from_hf(name) for name in published] == list(FULL_SIZE)
    assert [vision_from_hf("model." + name) for name in published] == list(FULL_SIZE)  # ShieldGemma 2
    assert [vision_from_hf(name.replace("vision_model.", "")) for name in published] == list(FULL_SIZE)
    assert {ours_from_hf(name) for name in published} == {IGNORED}
    assert [vision_from_gguf(gguf_from_vision(name)) for name in FULL_SIZE] == list(FULL_SIZE)
    assert len(FULL_SIZE) == len(set(published)) == 3 + 27 * 16 + 2 + 2


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("vision_tower.vision_model.encoder.layers.26.self_attn.out_proj.weight", "vision.layers.26.attn.o.weight"),
        ("vision_tower.vision_model.encoder.layers.0.layer_norm2.bias", "vision.layers.0.ffw_norm.bias"),
        ("model.vision_tower.vision_model.embeddings.position_embedding.weight", "vision.position"),
        ("model.multi_modal_projector.mm_input_projection_weight", "projector.weight"),
        ("multi_modal_projector.mm_soft_emb_norm.weight", "projector.norm.scale"),
        ("vision_tower.vision_model.head.probe", IGNORED),
        ("vision_tower.mm_soft_emb_norm.weight", None),
        ("multi_modal_projector.post_layernorm.weight", None),
        ("vision_tower.vision_model.encoder.layers.01.mlp.fc1.bias", None),
        ("encoder.layers.1.mlp.fc1.bias", None),
        ("language_model.model.norm.weight", None),
    ],
)
def test_hugging_face_names_are_those_of_the_specification(published, ours):
    assert vision_from_hf(published) == ours


def test_the_decoders_width_is_the_projectors(released_configs):
    for size in ("4b", "12b", "27b"):
        shapes = expected_vision_shapes(SIGLIP_SO400M_896, RELEASED[size].model_dim)
        assert shapes["projector.weight"] == (1152, released_configs[size]["text_config"]["hidden_size"])
