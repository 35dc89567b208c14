"""One error names everything that is wrong with a checkpoint's tensors, and says what it likely means."""

import re
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from gemworks.errors import CheckpointError
from gemworks.weights.checkpoint import StoredTensor
from gemworks.weights.names import HEAD, expected_shapes, hf_from_ours, ours_from_hf
from gemworks.weights.strict import Vocabularies, match_tensors

NAMES = Vocabularies(ours=ours_from_hf, published=hf_from_ours, dtypes=("F32", "F16", "BF16"))
FILE = Path("model.safetensors")


def tensor(published, shape, dtype="BF16"):
    return StoredTensor(published=published, shape=shape, dtype=dtype, num_bytes=2 * prod(shape), file=FILE)


@pytest.fixture
def stored(tiny_config):
    """The tensors of a complete checkpoint, by their published names."""
    return {
        hf_from_ours(name): tensor(hf_from_ours(name), shape) for name, shape in expected_shapes(tiny_config).items()
    }


def match(stored, config, same_bits=lambda one, other: pytest.fail("nothing to compare")):
    return match_tensors("tiny (1 file)", list(stored.values()), config, NAMES, same_bits=same_bits)


def refusal(stored, config, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        match(stored, config, **options)
    return str(caught.value)


def test_a_complete_checkpoint_gives_the_models_tensors_in_order(stored, tiny_config):
    shuffled = dict(sorted(stored.items(), reverse=True))
    entries = match(shuffled, tiny_config)
    assert list(entries) == list(expected_shapes(tiny_config))
    entry = entries["layers.5.attn.q.weight"]
    assert (entry.name, entry.published) == ("layers.5.attn.q.weight", "model.layers.5.self_attn.q_proj.weight")
    assert (entry.shape, entry.dtype, entry.num_bytes, entry.file) == ((128, 64), "BF16", 2 * 128 * 64, FILE)


def test_the_vision_half_does_not_disturb(stored, tiny_config):
    stored["v"] = tensor("vision_tower.vision_model.post_layernorm.weight", (9,))
    assert len(match(stored, tiny_config)) == len(expected_shapes(tiny_config))


def test_everything_wrong_is_in_one_message(stored, tiny_config):
    del stored["model.layers.6.mlp.down_proj.weight"]
    del stored["model.norm.weight"]
    stored["x"] = tensor("model.layers.6.mlp.weird.weight", (64, 2), "I32")
    stored["model.layers.0.self_attn.k_proj.weight"] = tensor("model.layers.0.self_attn.k_proj.weight", (128, 64))
    stored["model.layers.1.self_attn.v_proj.weight"] = tensor("model.layers.1.self_attn.v_proj.weight", (64, 64), "I8")
    stored["twice"] = tensor("language_model.model.layers.2.mlp.up_proj.weight", (160, 64))
    assert refusal(stored, tiny_config).splitlines() == [
        "tiny (1 file): 2 tensors are missing, 1 is unknown, 1 is of another shape, 1 is stored under two names "
        "and 1 is of a dtype that cannot be read.",
        "  missing  layers.6.ffw.down.weight  [64, 160]  (expected as model.layers.6.mlp.down_proj.weight)",
        "  missing  final_norm.scale  [64]  (expected as model.norm.weight)",
        "  unknown  model.layers.6.mlp.weird.weight  [64, 2] I32  (model.safetensors)",
        "  shape    layers.0.attn.k.weight  has [128, 64], wants [64, 64]  "
        "(model.layers.0.self_attn.k_proj.weight in model.safetensors)",
        "  twice    layers.2.ffw.up.weight  as model.layers.2.mlp.up_proj.weight and "
        "language_model.model.layers.2.mlp.up_proj.weight",
        "  dtype    model.layers.1.self_attn.v_proj.weight  [64, 64] I8  (model.safetensors)",
        "The weights and the config are of different models, or a tensor was resized: fetch the model again.",
    ]


def test_more_than_ten_of_a_kind_are_counted(stored, tiny_config):
    for layer in range(7):
        del stored[f"model.layers.{layer}.mlp.up_proj.weight"]
        del stored[f"model.layers.{layer}.mlp.gate_proj.weight"]
    message = refusal(stored, tiny_config)
    assert message.startswith("tiny (1 file): 14 tensors are missing.\n")
    assert len(re.findall("expected as", message)) == 10
    assert "  missing  ... and 4 more\n" in message


def test_an_empty_file_lists_the_first_missing_tensors(tiny_config):
    message = refusal({}, tiny_config)
    assert f"{len(expected_shapes(tiny_config))} tensors are missing" in message
    assert message.endswith("or its config is of another model: fetch it again.")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.layers.0.mlp.up_proj.qweight", "These look like GPTQ or AWQ weights"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "These look like bitsandbytes weights"),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "These look like bitsandbytes weights"),
        ("model.layers.0.mlp.up_proj.weight_packed", "These look like compressed-tensors weights"),
        ("model.layers.0.mlp.up_proj.scales", "These look like MLX-quantized weights"),
        ("base_model.model.layers.0.mlp.up_proj.lora_A.weight", "These are a LoRA adapter's tensors"),
        ("model.layers.0.mlp.up_proj.base_layer.weight", "The model was saved inside a PEFT wrapper"),
        ("_orig_mod.model.norm.weight", "The model was saved inside torch.compile"),
        ("model.layers.0.self_attn.q_proj.bias", "Gemma 3 has no biases"),
    ],
)
def test_packed_and_wrapped_weights_are_recognized_by_their_names(stored, tiny_config, name, hint):
    stored["x"] = tensor(name, (2, 2))
    assert refusal(stored, tiny_config).splitlines()[-1].startswith(hint)


def test_gemma_2_and_llama_are_recognized_by_what_they_lack(stored, tiny_config):
    for name in [name for name in stored if "q_norm" in name or "k_norm" in name]:
        del stored[name]
    assert refusal(stored, tiny_config).endswith("this looks like a Gemma 2 model; Gemworks runs Gemma 3.")
    for name in [name for name in stored if "feedforward" in name]:
        del stored[name]
    assert refusal(stored, tiny_config).endswith("this looks like a Llama or Mistral model; Gemworks runs Gemma 3.")


def test_another_number_of_layers_is_said(stored, tiny_config):
    longer = replace(tiny_config, layers=tiny_config.layers + tiny_config.layers[:2])
    assert refusal(stored, longer).endswith(
        "The file has 7 layers and the config says 9: they are of different models."
    )
    shorter = replace(tiny_config, layers=tiny_config.layers[:6])
    assert "13 tensors are unknown" in refusal(stored, shorter)


def test_a_vision_file_alone_is_said(tiny_config):
    only = {"v": tensor("vision_tower.vision_model.post_layernorm.weight", (9,))}
    assert refusal(only, tiny_config).endswith("Point at the file of its text half.")


def test_a_dtype_that_cannot_be_read_names_those_that_can(stored, tiny_config):
    stored["model.norm.weight"] = tensor("model.norm.weight", (64,), "F8_E4M3")
    message = refusal(stored, tiny_config)
    assert "  dtype    model.norm.weight  [64] F8_E4M3  (model.safetensors)\n" in message
    assert message.endswith("Readable are F32, F16, BF16. Save the model in one of them.")


def test_a_head_equal_to_the_tied_embedding_is_dropped(stored, tiny_config):
    stored["head"] = tensor("lm_head.weight", (96, 64))
    compared = []
    entries = match(stored, tiny_config, same_bits=lambda one, other: compared.append((one, other)) or True)
    assert HEAD.ours not in entries
    assert [(one.published, other.published) for one, other in compared] == [
        ("lm_head.weight", "model.embed_tokens.weight")
    ]


def test_a_head_that_differs_from_the_tied_embedding_is_refused_naming_both(stored, tiny_config):
    stored["head"] = tensor("lm_head.weight", (96, 64))
    message = refusal(stored, tiny_config, same_bits=lambda *_: False)
    assert message.splitlines() == [
        "tiny (1 file): 1 tensor is in conflict with the config.",
        "  head     lm_head.weight differs from model.embed_tokens.weight, but the config ties them",
        'A fine-tune that trained its head must say "tie_word_embeddings": false in config.json.',
    ]


def test_a_head_of_another_shape_is_misshapen(stored, tiny_config):
    stored["head"] = tensor("lm_head.weight", (95, 64))
    assert "head.weight  has [95, 64], wants [96, 64]" in refusal(stored, tiny_config)


def test_an_untied_model_needs_its_head(stored, tiny_config):
    untied = replace(tiny_config, tied_head=False)
    assert "  missing  head.weight  [96, 64]  (expected as lm_head.weight)" in refusal(stored, untied)
    stored["head"] = tensor("lm_head.weight", (96, 64))
    assert list(match(stored, untied))[-1] == HEAD.ours
