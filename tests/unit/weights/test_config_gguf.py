"""gemma3.* keys to a TextConfig and back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemworks.errors import CheckpointError, ConfigError
from gemworks.model.config import GEMMA3_1B, GEMMA3_4B, GEMMA3_27B, RELEASED, LayerSpec, TextConfig
from gemworks.weights.config_gguf import metadata_from_text_config, query_scale, text_config_from_gguf
from gemworks.weights.gguf_blocks import TYPES
from gemworks.weights.gguf_file import TensorInfo
from gemworks.weights.names import expected_shapes, gguf_from_ours

LOCAL, GLOBAL = LayerSpec(window=16, rope_base=1e4), LayerSpec(window=None, rope_base=1e6)


def tensors_of(config: TextConfig) -> dict[str, TensorInfo]:
    names = {gguf_from_ours(name): shape for name, shape in expected_shapes(config).items()}
    return {name: TensorInfo(name, shape, TYPES["F32"], 0, 0) for name, shape in names.items()}


def metadata_of(config: TextConfig) -> dict:
    values = {key: value for key, (_, value) in metadata_from_text_config(config).items()}
    return {"general.architecture": "gemma3", **values}


def parse(metadata: dict, config: TextConfig = GEMMA3_1B) -> TextConfig:
    return text_config_from_gguf(metadata, tensors_of(config), "model.gguf")


def with_keys(config: TextConfig = GEMMA3_1B, drop: str = "", **changes) -> dict:
    """The keys of `config`, some dropped, some changed (dots written as __)."""
    metadata = {key: value for key, value in metadata_of(config).items() if key not in drop.split()}
    return metadata | {f"gemma3.{key.replace('__', '.')}": value for key, value in changes.items()}


@pytest.mark.parametrize("size", sorted(RELEASED))
def test_released_sizes_survive(size):
    assert parse(metadata_of(RELEASED[size]), RELEASED[size]) == RELEASED[size]


LAYERS = {
    "all local": (LOCAL,) * 7,
    "all global": (GLOBAL,) * 7,
    "short": (LOCAL,) * 3,
    "every second": (LOCAL, GLOBAL) * 3,
    "no period": (GLOBAL, LOCAL, LOCAL, GLOBAL, GLOBAL),
}


@pytest.mark.parametrize("pattern", sorted(LAYERS))
def test_any_pattern_survives(pattern):
    config = replace(GEMMA3_1B, layers=LAYERS[pattern], tied_head=False)
    assert parse(metadata_of(config), config) == config


def test_the_common_pattern_is_written_as_a_period():
    """Runtimes of 2025 knew a period only, or assumed 6: so 6 it is wherever it fits."""
    key = "gemma3.attention.sliding_window_pattern"
    assert metadata_of(GEMMA3_1B)[key] == 6
    assert metadata_of(replace(GEMMA3_1B, layers=LAYERS["short"]))[key] == 6
    assert metadata_of(replace(GEMMA3_1B, layers=LAYERS["all local"]))[key] == 0
    assert metadata_of(replace(GEMMA3_1B, layers=LAYERS["no period"]))[key].tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]


# What converters leave out, as in the table of the module.
LLAMA_CPP_OMITS = "gemma3.rope.freq_base_swa gemma3.attention.sliding_window_pattern"
LLAMA_CPP_OMITS_1B = LLAMA_CPP_OMITS + " gemma3.rope.scaling.type gemma3.rope.scaling.factor"
OLLAMA_OMITS = LLAMA_CPP_OMITS_1B + " gemma3.rope.freq_base gemma3.attention.layer_norm_rms_epsilon"


def test_a_file_of_llama_cpps_converter():
    assert parse(with_keys(GEMMA3_4B, LLAMA_CPP_OMITS), GEMMA3_4B) == GEMMA3_4B
    assert parse(with_keys(GEMMA3_1B, LLAMA_CPP_OMITS_1B)) == GEMMA3_1B


def test_a_file_of_ollamas_converter():
    """4B and larger leave out the factor of 8, the bases and eps, and hold the vision half's keys."""
    vision = {"mm__tokens_per_image": 256, "vision__block_count": 27}
    assert parse(with_keys(GEMMA3_4B, OLLAMA_OMITS, **vision), GEMMA3_4B) == GEMMA3_4B
    bases = {"rope__local__freq_base": 1e4, "rope__global__freq_base": 1e6}
    assert parse(with_keys(GEMMA3_1B, OLLAMA_OMITS, **bases)) == GEMMA3_1B
    pattern = np.array([spec.is_local for spec in GEMMA3_1B.layers])
    assert parse(with_keys(attention__sliding_window_pattern=pattern)) == GEMMA3_1B


def test_head_dim_and_rows_come_from_tensors_where_keys_are_silent():
    silent = "gemma3.attention.key_length gemma3.attention.value_length"
    assert parse(with_keys(GEMMA3_27B, silent), GEMMA3_27B) == GEMMA3_27B
    padded = replace(GEMMA3_1B, vocab_size=262_145)
    assert parse(with_keys(vocab_size=262_208), padded).vocab_size == 262_145


def test_numbers_given_per_layer_must_be_equal():
    same = np.full(26, 1, np.uint32)
    assert parse(with_keys(attention__head_count_kv=same)) == GEMMA3_1B
    same[3] = 2
    with pytest.raises(CheckpointError, match=r"gemma3\.attention\.head_count_kv must be one number or 26 equal ones"):
        parse(with_keys(attention__head_count_kv=same))


def test_the_query_scale_of_27b_is_derived_from_the_width():
    """No key says it. 62 layers: (5376 // 32) ** -0.5; every other depth: head_dim ** -0.5."""
    assert parse(metadata_of(GEMMA3_27B), GEMMA3_27B).query_scale == 168**-0.5
    assert query_scale(5376, 32, 128, 62) == 168**-0.5
    assert query_scale(5376, 32, 128, 61) == 128**-0.5


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"general.architecture": "llama"},
            "model.gguf: general.architecture must be gemma3, got 'llama'.\nGemworks runs Gemma 3 models only.",
        ),
        (
            {"general.architecture": "clip"},
            "model.gguf: general.architecture must be gemma3, got 'clip'.\n"
            "This is the vision half of a model (mmproj); point at the file of its text half.",
        ),
        ({}, "model.gguf: general.architecture must be gemma3, got None."),
        (
            with_keys() | {"general.type": "adapter"},
            "model.gguf: general.type must be model, got 'adapter'.\nPoint at the model it belongs to.",
        ),
        (
            with_keys() | {"split.count": 3},
            "model.gguf: split.count must be 1, got 3.\nMerge the parts with `llama-gguf-split --merge` first.",
        ),
        (with_keys(drop="gemma3.embedding_length"), "model.gguf: gemma3.embedding_length must be there, and is not."),
        (with_keys(embedding_length="1152"), "model.gguf: gemma3.embedding_length must be a whole number, got '1152'."),
        (with_keys(context_length=True), "model.gguf: gemma3.context_length must be a whole number, got True."),
        (with_keys(context_length=0), "model.gguf: max_positions must be at least 1, got 0."),
        (with_keys(block_count=2**60), "model.gguf: gemma3.block_count must be 1 to the 340 tensors of the file"),
        (with_keys(block_count=0), "model.gguf: gemma3.block_count must be 1 to the 340 tensors of the file, got 0."),
        (
            with_keys(attention__value_length=128),
            "model.gguf: gemma3.attention.value_length must equal attention.key_length, which is 256, got 128.",
        ),
        (
            with_keys(rope__local__freq_base=5e5),
            "model.gguf: gemma3.rope.freq_base_swa and gemma3.rope.local.freq_base must be equal, got 10000 and 500000",
        ),
        (
            with_keys(rope__scaling__type="yarn"),
            "model.gguf: gemma3.rope.scaling.type must be linear or none, got 'yarn'.",
        ),
        (
            with_keys(GEMMA3_4B, rope__scaling__type="none"),
            "model.gguf: gemma3.rope.scaling.factor must be 1 where rope.scaling.type is none, got 8.",
        ),
        (
            with_keys(drop="gemma3.rope.scaling.factor"),
            "model.gguf: gemma3.rope.scaling.factor must be there, and is not.",
        ),
        (
            with_keys(rope__freq_base=float("nan")),
            "model.gguf: gemma3.rope.freq_base must be a positive number, got nan.",
        ),
        (with_keys(rope__freq_base=-1.0), "model.gguf: gemma3.rope.freq_base must be a positive number, got -1.0."),
        (
            with_keys(final_logit_softcapping=30.0),
            "model.gguf: gemma3.final_logit_softcapping must be 0, got 30.0.",
        ),
        (with_keys(attention__causal=False), "model.gguf: gemma3.attention.causal must be True, got False."),
        (with_keys(altup__num_inputs=4), "model.gguf: gemma3.altup.num_inputs is not a key of Gemma 3."),
        (
            with_keys(attention__sliding_window_pattern="6"),
            "model.gguf: gemma3.attention.sliding_window_pattern must be a period or one boolean a layer, got '6'.",
        ),
        (
            with_keys(attention__sliding_window_pattern=np.array([True])),
            "model.gguf: gemma3.attention.sliding_window_pattern must have one entry for each of 26 layers, got 1.",
        ),
        (
            with_keys(attention__head_count_kv=3),
            "model.gguf: num_heads must be a multiple of num_kv_heads, got 4 and 3.\n"
            "The metadata does not describe a Gemma 3.",
        ),
    ],
)
def test_refusals_name_the_key(metadata, message):
    with pytest.raises(CheckpointError) as caught:
        parse(metadata)
    assert str(caught.value).startswith(message)


def test_a_file_without_an_embedding_is_no_language_model():
    with pytest.raises(CheckpointError, match=r"model\.gguf: tensor token_embd\.weight must be there, and is not\."):
        text_config_from_gguf(metadata_of(GEMMA3_1B), dict.fromkeys("abcdefghijklmnopqrstuvwxyz"), "model.gguf")


def test_a_query_scale_that_runtimes_would_not_derive_is_refused():
    """Written, the file would run with another scale in llama.cpp, and answer slightly worse without a word."""
    with pytest.raises(ConfigError) as caught:
        metadata_from_text_config(replace(GEMMA3_1B, query_scale=168**-0.5))
    assert str(caught.value) == (
        "query_scale must be 0.0625 in a GGUF, got 0.0771517.\n"
        "GGUF has no key for it: runtimes take head_dim ** -0.5, and (D // H) ** -0.5 for 62 layers. "
        "Save as safetensors instead."
    )


def test_scaled_local_positions_are_refused():
    layers = (replace(LOCAL, rope_scale=2.0), GLOBAL)
    with pytest.raises(ConfigError, match="rope_scale of local layers must be 1 in a GGUF, got 2"):
        metadata_from_text_config(replace(GEMMA3_1B, layers=layers))


def test_the_table_in_the_module_names_every_key_that_is_written():
    from gemworks.weights import config_gguf

    table = Path(config_gguf.__file__).read_text().split('"""')[1]
    short = {key.removeprefix("gemma3.") for key in metadata_of(GEMMA3_1B) if key.startswith("gemma3.")}
    grouped = {"attention.value_length": ".value_length", "rope.scaling.factor": ".factor"}
    assert [key for key in short if grouped.get(key, key) not in table] == []
