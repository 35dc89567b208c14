"""Checkpoints that transformers wrote: its names, its configs, and soft tokens from file to file."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemworks.model.config import five_local_one_global
from gemworks.model.multimodal import encode
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.vision import LazyVision, load_vision, vision_config_of


@pytest.fixture(scope="module", params=[False, True], ids=["no head", "pooling head"])
def saved(request, tmp_path_factory):
    """Return (directory, the model); the second kind has SigLIP's pooling head, as its class default asks for."""
    text = dict(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=8,
    )
    vision = dict(
        hidden_size=32,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=84,
        patch_size=14,
        vision_use_head=request.param,
    )
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=9)
    model = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder, model


def expected_soft(model, pixels):
    with torch.no_grad():
        return model.model.get_image_features(torch.tensor(pixels), return_dict=True).pooler_output.numpy()


def test_the_vision_half_of_a_saved_model(saved):
    folder, model = saved
    config = vision_config_of(folder)
    assert config is not None
    assert (config.image_size, config.num_layers, config.tokens_per_image, config.ffw_dim) == (84, 2, 9, 72)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 84, 84)).astype(np.float32)
    got = encode(LazyVision(folder).get(), pixels)
    assert np.abs(got - expected_soft(model, pixels)).max() <= 2e-4


def test_the_text_half_beside_it(saved):
    folder, _ = saved
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.layers == five_local_one_global(6, window=8)


@pytest.mark.parametrize(
    "prefix",
    [
        ("vision_tower.", "vision_tower.vision_model."),
        ("vision_tower.", "model.vision_tower.vision_model."),
        ("vision_tower.", "model.vision_tower."),
        ("vision_tower.", "model.model.vision_tower.vision_model."),
    ],
    ids=["hub", "4.52 and later", "later still", "ShieldGemma 2"],
)
def test_every_published_layout(saved, prefix, tmp_path):
    folder, model = saved
    old, new = prefix
    outer = new.partition("vision_tower.")[0]
    moved = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace("vision_model.", "")
        name = name.replace(old, new) if name.startswith(old) else outer + name
        moved[name] = tensor.contiguous()
    save_file(moved, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 3, 84, 84)).astype(np.float32)
    assert np.abs(encode(load_vision(tmp_path), pixels) - expected_soft(model, pixels)).max() <= 2e-4
