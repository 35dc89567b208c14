"""config.json in all its forms gives the released literals; whatever is not Gemma 3 is refused by name."""

import copy
import re
from dataclasses import replace

import pytest

from gemworks.errors import CheckpointError, StorageError
from gemworks.model.config import RELEASED, LayerSpec, five_local_one_global
from gemworks.weights.config_fields import DEFAULTS, IGNORED_FIELDS, REFUSED_FIELDS, REQUIRED_VALUES
from gemworks.weights.config_json import eos_ids_from_json, json_from_text_config, read_json, text_config_from_json

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def parse(data):
    return text_config_from_json(data, "config.json")


def refusal(data) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(data)
    return str(caught.value)


@pytest.fixture
def flat(tiny_config):
    """A config.json that states everything, old fields and new."""
    return json_from_text_config(tiny_config)


@pytest.fixture
def old(flat):
    """The same in the first generation."""
    return {key: value for key, value in flat.items() if key not in ("rope_parameters", "layer_types", "dtype")}


@pytest.fixture
def new(flat):
    """The same in the third generation."""
    gone = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern", "torch_dtype")
    return {key: value for key, value in flat.items() if key not in gone}


@pytest.mark.parametrize("size", RELEASED)
def test_released_configs_are_the_literals(released_configs, size):
    assert parse(released_configs[size]) == RELEASED[size]


@pytest.mark.parametrize("size", RELEASED)
def test_what_we_write_reads_back(size):
    assert parse(json_from_text_config(RELEASED[size])) == RELEASED[size]


def test_all_generations_mean_the_same(tiny_config, old, new, flat):
    assert parse(old) == parse(new) == parse(flat) == tiny_config


def test_the_middle_generation_states_layers_and_the_private_pattern(tiny_config, old, flat):
    middle = old | {"layer_types": flat["layer_types"], "_sliding_window_pattern": 6}
    del middle["sliding_window_pattern"]
    assert parse(middle) == tiny_config


def test_odd_models_read_back(tiny_config):
    """No local layer, no global layer, no pattern, a scaled local rope, a head of its own."""
    local, global_ = tiny_config.layers[0], tiny_config.layers[5]
    scaled = replace(local, rope_scale=2.0)
    for layers in ([global_] * 3, [local] * 3, [global_, local, local], [scaled, scaled, global_]):
        for tied in (True, False):
            config = replace(tiny_config, layers=tuple(layers), tied_head=tied, query_scale=168**-0.5)
            found = parse(json_from_text_config(config))
            assert replace(found, query_scale=0.0) == replace(config, query_scale=0.0)
            assert found.query_scale == pytest.approx(168**-0.5, rel=1e-12)


def test_a_nested_config_is_sparse(released_configs):
    """4B's text_config leaves out its heads and vocabulary; the class defaults fill them in."""
    data = released_configs["4b"]
    assert {"num_attention_heads", "head_dim", "vocab_size"}.isdisjoint(data["text_config"])
    config = parse(data)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262_208)
    assert config.layers == five_local_one_global(34, window=1024, global_scale=8.0)


def test_shieldgemma_is_the_4b_text_model(released_configs):
    data = copy.deepcopy(released_configs["4b"]) | {"model_type": "shieldgemma2", "yes_token_index": 10784}
    data["text_config"]["max_position_embeddings"] = 8192
    assert parse(data) == replace(RELEASED["4b"], max_positions=8192)


def test_rope_parameters_may_leave_the_base_to_the_old_field(new, tiny_config):
    del new["rope_parameters"][GLOBAL]["rope_theta"], new["rope_parameters"][LOCAL]
    assert parse(new | {"rope_theta": 5e5}).global_spec == LayerSpec(window=None, rope_base=5e5, rope_scale=8.0)
    assert parse(new) == tiny_config


def test_old_scaling_with_the_old_spelling_of_its_type(old, tiny_config):
    assert parse(old | {"rope_scaling": {"type": "linear", "factor": 8}}) == tiny_config


def test_layer_types_win_over_the_private_pattern(flat):
    """transformers 5 writes _sliding_window_pattern 6 whatever the layers are, and never reads it."""
    del flat["sliding_window_pattern"]
    flat |= {"layer_types": [GLOBAL] * 7, "_sliding_window_pattern": 6}
    assert not any(spec.is_local for spec in parse(flat).layers)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3n", "qwen3", "gpt2", None])
def test_another_model_is_refused_by_its_name(model_type):
    names = {"llama": "a Llama checkpoint", "gemma2": "a Gemma 2 checkpoint", "gemma3n": "a Gemma 3n checkpoint",
             "qwen3": "a Qwen 3 checkpoint"}  # fmt: skip
    stated = "null" if model_type is None else f'"{model_type}"'
    assert refusal({"model_type": model_type, "hidden_size": 2048}) == (
        f'config.json: model_type must be "gemma3_text" or "gemma3", got {stated}.\n'
        f"This is {names.get(model_type, 'another kind of model')}, and Gemworks runs Gemma 3. "
        "Pull one by name, as in gemma3:1b."
    )


def test_a_nested_config_without_its_text_is_refused():
    assert 'model_type "gemma3" must come with a text_config, got null' in refusal({"model_type": "gemma3"})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"layer_types": [LOCAL] * 6}, "layer_types  has 6 entries, but num_hidden_layers is 7"),
        ({"layer_types": [LOCAL] * 6 + ["dense"]}, 'layer_types  holds ["dense"], wants "sliding_attention" or'),
        ({"layer_types": LOCAL}, 'layer_types  holds "sliding_attention", wants'),
        ({"sliding_window_pattern": 5}, "sliding_window_pattern  is 5, but layer_types makes layer 4 sliding_"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern  is 0, wants a whole number of at least 1"),
        ({"rope_theta": 5e5}, "rope_theta  is 500000.0, but rope_parameters.full_attention.rope_theta is 1000000.0"),
        ({"rope_local_base_freq": 1}, "rope_local_base_freq  is 1.0, but rope_parameters.sliding_attention.rope_theta"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
         "rope_scaling  divides positions by 4, but rope_parameters.full_attention by 8"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, 'rope_scaling.rope_type  is ["yarn"], wants'),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor  is null, wants a number above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0, "beta_fast": 32}},
         'rope_scaling  holds {"beta_fast": 32}: unknown to Gemma 3\'s rope'),
        ({"rope_scaling": 8}, "rope_scaling  is 8, wants null or an object"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
         'rope_parameters  holds ["rope_theta", "rope_type"], wants only'),
        ({"rope_parameters": {GLOBAL: 3}}, "rope_parameters.full_attention  is 3, wants an object"),
        ({"attention_bias": True}, "attention_bias  is true, wants false"),
        ({"hidden_activation": "silu"}, 'hidden_activation  is "silu", wants "gelu_pytorch_tanh"'),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping  is 30.0, wants null"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping  is 50.0, wants null"),
        ({"use_bidirectional_attention": True},
         "use_bidirectional_attention  is true: this is an embedding model (EmbeddingGemma)"),
        ({"quantization_config": {"quant_method": "gptq"}},
         'quantization_config  is {"quant_method": "gptq"}: packed weights of this kind are not read'),
        ({"hidden_size": 64.0}, "hidden_size  is 64.0, wants a whole number of at least 1"),
        ({"hidden_size": True}, "hidden_size  is true, wants a whole number of at least 1"),
        ({"hidden_size": None}, "hidden_size  is null, wants a whole number of at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers  is -1, wants a whole number of at least 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers  is 1000000000, wants at most 10000"),
        ({"sliding_window": None}, "sliding_window  is null, wants a whole number of at least 1"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar  is 0, wants a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps  is NaN, wants a number above 0"),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings  is "yes", wants true or false'),
        ({"num_experts": 8}, "num_experts  is 8: unknown field"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_honoured_is_named_with_its_value(flat, change, line):
    message = refusal(flat | change)
    assert message.startswith("config.json: 1 field cannot be honoured.\n"), message
    assert message.splitlines()[1].startswith("  " + line), message


def test_all_offenders_are_in_one_message(flat):
    message = refusal(flat | {"attention_bias": True, "num_experts": 8, "rope_theta": 3.0})
    assert message.startswith("config.json: 3 fields cannot be honoured.\n")
    assert message.endswith("remove it from config.json; else this model is not Gemma 3.")
    many = refusal(flat | {f"strange_{i}": i for i in range(12)})
    assert "12 fields" in many and "  ... and 2 more\n" in many and many.count("unknown field") == 10


def test_a_quantized_config_says_what_to_use_instead(flat):
    message = refusal(flat | {"quantization_config": {"quant_method": "awq"}})
    assert message.endswith("Use the bf16 release of this model, or a Q4_0 or Q8_0 GGUF.")


def test_a_private_pattern_alone_that_differs_is_refused(old):
    del old["sliding_window_pattern"]
    message = refusal(old | {"_sliding_window_pattern": 3})
    assert "_sliding_window_pattern  is 3, but sliding_window_pattern is null (6 if absent)" in message


def test_halves_of_a_nested_config_must_agree(released_configs):
    data = copy.deepcopy(released_configs["4b"])
    data["text_config"]["tie_word_embeddings"] = True
    assert parse(data | {"tie_word_embeddings": True}).tied_head
    message = refusal(data | {"tie_word_embeddings": False})
    assert "tie_word_embeddings  is false above and true in text_config" in message
    del data["text_config"]["tie_word_embeddings"]
    assert not parse(data | {"tie_word_embeddings": False}).tied_head
    assert parse(data | {"vocab_size": 262_208}) == RELEASED["4b"]
    message = refusal(data | {"hidden_size": 640})
    assert "hidden_size  is 640 above, but 2560 in text_config" in message


def test_sizes_that_do_not_fit_together_are_refused_with_the_file(flat):
    message = refusal(flat | {"num_key_value_heads": 3})
    assert message == "config.json: num_heads must be a multiple of num_kv_heads, got 4 and 3."


def test_every_field_has_one_meaning_and_a_reason():
    tables = [DEFAULTS, REQUIRED_VALUES, REFUSED_FIELDS, IGNORED_FIELDS]
    keys = [key for table in tables for key in table]
    assert len(keys) == len(set(keys))
    assert all(IGNORED_FIELDS.values()) and all(REFUSED_FIELDS.values())


def test_ids_that_end_an_answer_are_found_in_both_forms(released_configs):
    assert eos_ids_from_json(released_configs["4b"]) == (1, 106)
    assert eos_ids_from_json(released_configs["270m"]) == (1,)
    assert eos_ids_from_json({"text_config": {"eos_token_id": 7}}) == (7,)
    assert eos_ids_from_json({"eos_token_id": None}) is None
    assert eos_ids_from_json({"eos_token_id": [1, "x"]}) is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "must hold JSON, and it does not"),
        (b"\xff{}", "must hold JSON, and it does not"),
        (b"[" * 200_000, "must hold JSON, and it does not"),
        (b"[1]", "must hold a JSON object, and it holds a list"),
    ],
)
def test_a_file_that_is_not_an_object_is_refused(tmp_path, content, complaint):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(complaint)):
        read_json(path)


def test_an_absent_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"config\.json cannot be read: No such file or directory"):
        read_json(tmp_path / "config.json")
