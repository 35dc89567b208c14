"""The table of names is a bijection per layout, anchored, and its shapes add up to the published sizes."""

from math import prod

import pytest

from gemworks.model.config import RELEASED
from gemworks.weights.names import (
    HEAD,
    IGNORED,
    TABLE,
    expected_shapes,
    gguf_from_ours,
    hf_from_ours,
    is_norm,
    ours_from_gguf,
    ours_from_hf,
)

ALL = [*expected_shapes(RELEASED["27b"]), HEAD.ours]


@pytest.mark.parametrize("layout", ["A", "B", "C"])
def test_every_name_comes_back_from_every_layout(layout):
    published = [hf_from_ours(name, layout) for name in ALL]
    assert [ours_from_hf(name) for name in published] == ALL
    assert len(set(published)) == len(ALL)


def test_every_name_comes_back_from_gguf():
    published = [gguf_from_ours(name) for name in ALL]
    assert [ours_from_gguf(name) for name in published] == ALL
    assert len(set(published)) == len(ALL)


@pytest.mark.parametrize("layout", ["A", "B"])
def test_shieldgemma_puts_one_more_model_in_front(layout):
    assert [ours_from_hf("model." + hf_from_ours(name, layout)) for name in ALL] == ALL


def test_shieldgemma_as_transformers_5_saves_it_has_two():
    assert [ours_from_hf("model.model." + hf_from_ours(name, "A")) for name in ALL] == ALL


def test_a_decoder_saved_without_its_head_has_no_prefix():
    assert ours_from_hf("layers.3.mlp.up_proj.weight") == "layers.3.ffw.up.weight"
    assert ours_from_hf("embed_tokens.weight") == "embed.weight"


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("language_model.model.layers.7.self_attn.q_norm.weight", "layers.7.attn.q_norm.scale"),
        ("model.language_model.layers.0.post_attention_layernorm.weight", "layers.0.attn_post_norm.scale"),
        ("model.layers.61.pre_feedforward_layernorm.weight", "layers.61.ffw_pre_norm.scale"),
        ("model.norm.weight", "final_norm.scale"),
        ("lm_head.weight", "head.weight"),
        ("language_model.lm_head.weight", "head.weight"),
    ],
)
def test_hugging_face_names_are_those_of_the_specification(published, ours):
    assert ours_from_hf(published) == ours


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("token_embd.weight", "embed.weight"),
        ("blk.5.attn_norm.weight", "layers.5.attn_pre_norm.scale"),
        ("blk.5.post_attention_norm.weight", "layers.5.attn_post_norm.scale"),
        ("blk.5.ffn_norm.weight", "layers.5.ffw_pre_norm.scale"),
        ("blk.5.post_ffw_norm.weight", "layers.5.ffw_post_norm.scale"),
        ("blk.5.attn_output.weight", "layers.5.attn.o.weight"),
    ],
)
def test_gguf_names_are_those_of_the_specification(published, ours):
    assert ours_from_gguf(published) == ours


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.vision_model.post_layernorm.bias",
        "model.model.vision_tower.encoder.layers.0.mlp.fc1.weight",
        "multi_modal_projector.mm_input_projection_weight",
        "model.multi_modal_projector.mm_soft_emb_norm.weight",
    ],
)
def test_the_vision_half_is_known_and_ignored(name):
    assert ours_from_hf(name) is IGNORED


@pytest.mark.parametrize("name", ["mm.input_projection.weight", "v.blk.0.attn_q.weight", "v.patch_embd.bias"])
def test_the_vision_half_of_gguf_is_known_and_ignored(name):
    assert ours_from_gguf(name) is IGNORED


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight.bak",
        "model.layers.0.mlp.up_proj.qweight",
        "model.layers.0.mlp.up_proj.bias",
        "model.layers..mlp.up_proj.weight",
        "model.layers.-1.mlp.up_proj.weight",
        "model.layers.1234567.mlp.up_proj.weight",
        "model.layers.0.self_attnXq_proj.weight",
        "xmodel.layers.0.mlp.up_proj.weight",
        "model.model.layers.0.mlp.up_proj.weight",
        "model.embed_tokens.weight\n",
        "model.lm_head",
        "vision_tower",
        "",
    ],
)
def test_near_misses_are_unknown(name):
    assert ours_from_hf(name) is None
    assert ours_from_gguf(name) is None


@pytest.mark.parametrize("name", ["blk.00.attn_q.weight", "blk.0.attn_q.bias", "rope_freqs.weight", "output.weight.1"])
def test_near_misses_of_gguf_are_unknown(name):
    assert ours_from_gguf(name) is None


# blocks + norms, embedding: spec 3.4, derived from published totals.
@pytest.mark.parametrize(
    ("size", "blocks", "embedding"),
    [
        ("270m", 100_326_016, 167_772_160),
        ("1b", 697_896_064, 301_989_888),
        ("4b", 3_209_010_688, 671_252_480),
        ("12b", 10_759_155_456, 1_006_878_720),
        ("27b", 25_599_716_096, 1_409_630_208),
    ],
)
def test_shapes_add_up_to_the_published_parameter_counts(size, blocks, embedding):
    shapes = expected_shapes(RELEASED[size])
    assert prod(shapes.pop("embed.weight")) == embedding
    assert sum(prod(shape) for shape in shapes.values()) == blocks


def test_shapes_of_1b_are_those_of_the_specification():
    shapes = expected_shapes(RELEASED["1b"])
    assert shapes["layers.25.attn.q.weight"] == (1024, 1152)
    assert shapes["layers.25.attn.k.weight"] == (256, 1152)
    assert shapes["layers.25.attn.o.weight"] == (1152, 1024)
    assert shapes["layers.25.ffw.gate.weight"] == (6912, 1152)
    assert shapes["layers.25.ffw.down.weight"] == (1152, 6912)
    assert shapes["layers.25.attn.k_norm.scale"] == (256,)
    assert "layers.26.attn.q.weight" not in shapes
    assert len(shapes) == 2 + 26 * 13


def test_only_an_untied_model_has_a_head(tiny_config):
    from dataclasses import replace

    assert HEAD.ours not in expected_shapes(tiny_config)
    assert expected_shapes(replace(tiny_config, tied_head=False))[HEAD.ours] == (96, 64)


def test_norms_are_the_vectors():
    assert {row.ours for row in TABLE if is_norm(row.ours)} == {row.ours for row in TABLE if len(row.axes.split()) == 1}
