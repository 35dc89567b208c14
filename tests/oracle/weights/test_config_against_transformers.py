"""config.json means to us what it means to transformers, for every released size and generation of the file."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, Gemma3Config, Gemma3TextConfig, GenerationConfig

from gemworks.model.config import RELEASED, LayerSpec, TextConfig, five_local_one_global
from gemworks.weights.checkpoint import GenerationDefaults
from gemworks.weights.config_json import json_from_text_config, read_json, text_config_from_json
from gemworks.weights.generation_json import generation_defaults_from_json, json_from_generation_defaults

RELEASED_JSON = Path(__file__).parents[2] / "unit" / "weights" / "released_configs.json"


def from_transformers(config: Gemma3TextConfig) -> TextConfig:
    """What transformers understood, in our terms; written without our parser."""
    rope = {kind: (one["rope_theta"], one.get("factor", 1.0)) for kind, one in config.rope_parameters.items()}
    layers = []
    for kind in config.layer_types:
        base, scale = rope[kind]
        window = config.sliding_window if kind == "sliding_attention" else None
        layers.append(LayerSpec(window=window, rope_base=base, rope_scale=scale))
    return TextConfig(
        vocab_size=config.vocab_size,
        model_dim=config.hidden_size,
        ffw_dim=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        query_scale=config.query_pre_attn_scalar**-0.5,
        layers=tuple(layers),
        max_positions=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        tied_head=config.tie_word_embeddings,
    )


def text_half(directory: Path) -> Gemma3TextConfig:
    config = AutoConfig.from_pretrained(directory)
    return config.text_config if isinstance(config, Gemma3Config) else config


def write(directory: Path, data: dict) -> Path:
    (directory / "config.json").write_text(json.dumps(data))
    return directory


@pytest.fixture(params=RELEASED)
def released(request):
    """(size, config.json of its repository)."""
    return request.param, json.loads(RELEASED_JSON.read_text(encoding="utf-8"))[request.param]


def test_the_released_files_mean_the_literals_to_both(tmp_path, released):
    size, data = released
    assert from_transformers(text_half(write(tmp_path, data))) == RELEASED[size]
    assert text_config_from_json(data, "config.json") == RELEASED[size]


def test_the_files_transformers_writes_mean_the_same(tmp_path, released):
    """The third generation, made from the first: every field transformers writes is known to us."""
    size, data = released
    AutoConfig.from_pretrained(write(tmp_path, data)).save_pretrained(tmp_path)
    saved = read_json(tmp_path / "config.json")
    assert "rope_parameters" in saved.get("text_config", saved)
    assert text_config_from_json(saved, "config.json") == RELEASED[size]


def test_every_field_transformers_dumps_is_known(released):
    """to_dict holds all fields, also those that save_pretrained leaves out."""
    size, data = released
    kind = Gemma3Config if data["model_type"] == "gemma3" else Gemma3TextConfig
    dumped = json.loads(json.dumps(kind.from_dict(copy.deepcopy(data)).to_dict()))
    assert text_config_from_json(dumped, "config.json") == RELEASED[size]


@pytest.mark.parametrize("size", RELEASED)
def test_transformers_reads_what_we_write(tmp_path, size):
    config = AutoConfig.from_pretrained(write(tmp_path, json_from_text_config(RELEASED[size])))
    assert type(config) is Gemma3TextConfig and str(config.dtype) in ("bfloat16", "torch.bfloat16")
    assert from_transformers(config) == RELEASED[size]


@pytest.mark.parametrize("size", RELEASED)
def test_older_transformers_read_what_we_write(tmp_path, size):
    """4.50 knows only the old fields; without the new ones the file must still mean the same to transformers."""
    data = json_from_text_config(RELEASED[size])
    for field in ("rope_parameters", "layer_types", "dtype"):
        del data[field]
    assert from_transformers(text_half(write(tmp_path, data))) == RELEASED[size]


@pytest.mark.parametrize(
    "change",
    [
        {"tied_head": False},
        {"layers": five_local_one_global(9, window=7, global_scale=3.0, local_base=777.0, global_base=12345.0)},
        {"layers": (LayerSpec(window=None, rope_base=1e6, rope_scale=8.0),) * 2},
        {"layers": (LayerSpec(window=None, rope_base=1e6), LayerSpec(window=5, rope_base=1e4)) * 2},
        {"norm_eps": 1e-5, "head_dim": 128, "max_positions": 4096},
    ],
)
def test_odd_configs_go_both_ways(tmp_path, change):
    config = replace(RELEASED["270m"], **change)
    found = text_half(write(tmp_path, json_from_text_config(config)))
    assert from_transformers(found) == config
    found.save_pretrained(tmp_path)
    assert text_config_from_json(read_json(tmp_path / "config.json"), "config.json") == config


@pytest.mark.parametrize(
    "defaults",
    [
        GenerationDefaults(),
        GenerationDefaults(eos_ids=(1, 106), temperature=0.7, top_k=50, top_p=1.0),
        GenerationDefaults(eos_ids=(5,), bos_id=6, pad_id=7, temperature=1.5, top_k=3, top_p=0.25),
    ],
)
def test_generation_defaults_go_both_ways(tmp_path, defaults):
    (tmp_path / "generation_config.json").write_text(json.dumps(json_from_generation_defaults(defaults)))
    theirs = GenerationConfig.from_pretrained(tmp_path)
    eos = theirs.eos_token_id
    assert (tuple(eos) if isinstance(eos, list) else (eos,)) == defaults.eos_ids
    assert (theirs.bos_token_id, theirs.pad_token_id) == (defaults.bos_id, defaults.pad_id)
    assert (theirs.temperature, theirs.top_k, theirs.top_p) == (defaults.temperature, defaults.top_k, defaults.top_p)
    theirs.save_pretrained(tmp_path)
    saved = read_json(tmp_path / "generation_config.json")
    assert generation_defaults_from_json(saved, "generation_config.json") == defaults
