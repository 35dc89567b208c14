"""Generation defaults: what a file says, what it leaves to transformers, and what no file says."""

import pytest

from gemworks.errors import CheckpointError
from gemworks.weights.checkpoint import GenerationDefaults, is_chat_model
from gemworks.weights.generation_json import generation_defaults_from_json, json_from_generation_defaults

RELEASED = {
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "do_sample": True,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "top_k": 64,
    "top_p": 0.95,
    "transformers_version": "4.50.0.dev0",
}


def read(data, config=None):
    return generation_defaults_from_json(data, "generation_config.json", config=config)


def test_the_released_file_is_read():
    assert read(RELEASED) == GenerationDefaults(eos_ids=(1, 106))


def test_without_a_file_the_config_gives_ids_and_the_report_the_rest():
    assert read(None, {"eos_token_id": [1, 106], "pad_token_id": 3}) == GenerationDefaults(eos_ids=(1, 106), pad_id=3)
    assert read(None, {"text_config": {"eos_token_id": 5, "bos_token_id": 4}}).bos_id == 4
    assert read(None) == GenerationDefaults()


def test_a_file_of_ids_alone_leaves_sampling_to_gemma():
    assert read({"eos_token_id": 1}) == GenerationDefaults()


def test_a_file_that_sets_up_sampling_leaves_the_rest_to_transformers():
    found = read({"do_sample": True, "temperature": 0.6, "eos_token_id": 1, "top_p": None})
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 50, 1.0)
    assert not read({"do_sample": False}).do_sample


@pytest.mark.parametrize(
    "defaults",
    [GenerationDefaults(), GenerationDefaults(eos_ids=(1, 106, 50), temperature=0.2, top_k=0, top_p=0.5, pad_id=9),
     GenerationDefaults(do_sample=False)],
)  # fmt: skip
def test_what_is_written_reads_back(defaults):
    assert read(json_from_generation_defaults(defaults)) == defaults


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("temperature", -1, "a number of at least 0, got -1"),
        ("temperature", "hot", "a number of at least 0, got 'hot'"),
        ("top_p", 1.5, "a number from 0 to 1, got 1.5"),
        ("top_k", -5, "a number of at least 0, got -5"),
        ("do_sample", 1, "true or false, got 1"),
        ("eos_token_id", "</s>", "a token id or a list of them, got '</s>'"),
        ("eos_token_id", [], "a token id or a list of them, got []"),
        ("bos_token_id", -2, "a token id, got -2"),
    ],
)
def test_an_unusable_value_is_named(field, value, wanted):
    with pytest.raises(CheckpointError) as caught:
        read(RELEASED | {field: value})
    assert str(caught.value).startswith(f"generation_config.json: {field} must be {wanted}.\n")


def test_a_chat_model_has_a_template_or_stops_at_the_end_of_a_turn():
    assert is_chat_model((1,), "{{ messages }}") is True
    assert is_chat_model((1, 106), None) is True
    assert is_chat_model((1,), None) is False
    assert is_chat_model(None, None) is None
