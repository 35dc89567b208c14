"""Adapters on disk: what is read, with which scale, and what is refused, by the name of the tensor or field."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_models import small_config

from gemworks.errors import CheckpointError, StorageError
from gemworks.model.lora import target_shape
from gemworks.weights.adapter import read_adapter
from gemworks.weights.names import hf_from_ours

CONFIG = small_config(num_layers=3)
TARGETS = ("q", "down")


def module(layer: int, target: str) -> str:
    half = "attn" if target in ("q", "k", "v", "o") else "ffw"
    return hf_from_ours(f"layers.{layer}.{half}.{target}.weight").removesuffix(".weight")


def tensor_name(layer: int, target: str, half: str) -> str:
    return f"base_model.model.{module(layer, target)}.lora_{half}.weight"


Q_A, Q_B = tensor_name(0, "q", "A"), tensor_name(0, "q", "B")


def tensors(rank: int = 4, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for layer in range(3):
        for target in TARGETS:
            F, D = target_shape(CONFIG, target)
            found[tensor_name(layer, target, "A")] = rng.normal(size=(rank, D)).astype(dtype)
            found[tensor_name(layer, target, "B")] = rng.normal(size=(F, rank)).astype(dtype)
    return found


def write(folder, arrays=None, **fields):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    save_file(tensors() if arrays is None else arrays, folder / "adapter_model.safetensors")
    return folder


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as refused:
        read_adapter(folder, CONFIG)
    return str(refused.value)


def test_matrices_are_read_with_the_scale_in_b(tmp_path):
    stored = tensors()
    adapter = read_adapter(write(tmp_path, stored), CONFIG)
    assert adapter.rank == 4 and adapter.targets == TARGETS and len(adapter.deltas) == 6
    for (layer, target), delta in adapter.deltas.items():
        np.testing.assert_array_equal(delta.a_rD, stored[tensor_name(layer, target, "A")])
        np.testing.assert_array_equal(delta.b_Fr, 2 * stored[tensor_name(layer, target, "B")])
    assert adapter.nbytes == sum(array.nbytes for array in stored.values())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "bfloat16"])
def test_half_precision_is_read_as_fp32(dtype, tmp_path):
    import ml_dtypes

    stored = tensors(dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    delta = read_adapter(write(tmp_path, stored), CONFIG).deltas[0, "q"]
    assert delta.a_rD.dtype == delta.b_Fr.dtype == np.float32
    np.testing.assert_array_equal(delta.a_rD, stored[Q_A].astype(np.float32))


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 3}, 3 / 4),
        ({"lora_alpha": 3, "use_rslora": True}, 3 / 2),
        ({"alpha_pattern": {"q_proj": 5}}, 5 / 4),
        ({"alpha_pattern": {"down_proj": 5}}, 2),
        ({"alpha_pattern": {r"layers\.[12]\..*": 5, r"0\.self_attn\.q_proj": 6}}, 6 / 4),
        ({"r": 1, "rank_pattern": {"q_proj": 4, "down_proj": 4}}, 2),
    ],
)
def test_scale(fields, scale, tmp_path):
    adapter = read_adapter(write(tmp_path, **fields), CONFIG)
    np.testing.assert_allclose(adapter.deltas[0, "q"].b_Fr, scale * tensors()[Q_B], rtol=1e-6)
    assert math.isfinite(scale)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model.model.language_model."])
def test_every_naming_of_the_decoder(prefix, tmp_path):
    renamed = {name.replace("model.model.layers", f"model.{prefix}layers"): array for name, array in tensors().items()}
    assert read_adapter(write(tmp_path, renamed), CONFIG).targets == TARGETS


def test_shapes_of_another_model_are_named_with_what_was_wanted(tmp_path):
    arrays = tensors()
    arrays[Q_A] = np.zeros((4, 99), np.float32)
    arrays[Q_B] = np.zeros((64, 5), np.float32)
    text = refusal(write(tmp_path, arrays))
    assert "2 tensors are not right" in text
    assert f"shape  {Q_A}  wanted [4, 48], got [4, 99]" in text
    assert f"shape  {Q_B}  wanted [64, 4], got [64, 5]" in text
    assert "made for another model" in text


def test_missing_and_foreign_tensors_are_named(tmp_path):
    arrays = tensors()
    del arrays[Q_B]
    text = refusal(write(tmp_path, arrays))
    assert f"1 tensor is not right.\n  missing  {Q_B}" in text
    arrays = {name: array for name, array in tensors().items() if "layers.1.mlp" not in name}
    assert f"missing  base_model.model.{module(1, 'down')}.lora_A.weight and lora_B.weight" in refusal(
        write(tmp_path, arrays)
    )
    text = refusal(write(tmp_path, target_modules=["q_proj"]))
    assert "6 tensors are not right" in text and f"not in target_modules  {tensor_name(2, 'down', 'A')}" in text
    text = refusal(write(tmp_path, tensors() | {"base_model.model.model.norm.lora_A.weight": np.zeros((4, 48))}))
    assert "unknown  base_model.model.model.norm.lora_A.weight" in text
    far = {name.replace("layers.2.", "layers.3."): array for name, array in tensors().items()}
    text = refusal(write(tmp_path, far, layers_to_transform=[0, 1, 3]))
    assert f"no such layer  {tensor_name(3, 'q', 'A')}" in text and "The model has 3 layers." in text


def test_only_the_layers_that_are_said(tmp_path):
    arrays = {name: array for name, array in tensors().items() if "layers.1." not in name}
    adapter = read_adapter(write(tmp_path, arrays, layers_to_transform=[0, 2]), CONFIG)
    assert {layer for layer, _ in adapter.deltas} == {0, 2}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    arrays = tensors()
    arrays[Q_A][1, 2] = value
    assert f"must hold finite numbers, and {Q_A} has 1 that are not" in refusal(write(tmp_path, arrays))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', not 'LORA'"),
        ({"lora_bias": True}, "lora_bias is True (biases)"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is ['embed_tokens']"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"novel_thing": 3}, "novel_thing is 3"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is [[0, 2]] (replicated layers)"),
        ({"r": 0}, "r must be a whole number above 0, and is 0"),
        ({"r": True}, "r must be a whole number above 0, and is True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, and is '8'"),
        ({"target_modules": None}, "target_modules must be names or a regular expression, and is None"),
        ({"target_modules": "(q_proj"}, "target_modules holds '(q_proj', which is no regular expression"),
        ({"rank_pattern": {"q": "4"}}, "rank_pattern must be whole numbers above 0 by pattern"),
        ({"rank_pattern": {"*q": 4}}, "rank_pattern holds '*q', which is no regular expression"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be a layer or a list of layers"),
        ({"layers_pattern": 3}, "layers_pattern must be names, and is 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_fields_that_cannot_be_followed_are_named(fields, named, tmp_path):
    text = refusal(write(tmp_path, **fields))
    assert named in text and "adapter_config.json must describe a LoRA adapter that we can compute" in text


def test_every_wrong_field_is_named_at_once(tmp_path):
    text = refusal(write(tmp_path, use_qalora=True, lora_bias=True, r=-1))
    assert all(name in text for name in ("use_qalora", "lora_bias", "r must be"))


def with_lengths(arrays=None):
    found = tensors() if arrays is None else arrays
    return found | {
        name.replace("lora_A.weight", "lora_magnitude_vector"): np.full(
            found[name.replace("lora_A", "lora_B")].shape[0], 3.0, np.float32
        )
        for name in found
        if "lora_A" in name
    }


def test_lengths_of_dora_are_read(tmp_path):
    adapter = read_adapter(write(tmp_path, with_lengths(), use_dora=True), CONFIG)
    assert adapter.is_dora
    for (_, target), delta in adapter.deltas.items():
        np.testing.assert_array_equal(delta.magnitude_F, np.full(target_shape(CONFIG, target)[0], 3.0))
    old = {name + ".weight" if "magnitude" in name else name: array for name, array in with_lengths().items()}
    assert read_adapter(write(tmp_path, old, use_dora=True), CONFIG).is_dora
    assert not read_adapter(write(tmp_path), CONFIG).is_dora


def test_lengths_that_do_not_go_with_the_config_are_named(tmp_path):
    length = Q_A.replace("lora_A.weight", "lora_magnitude_vector")
    arrays = with_lengths()
    del arrays[length]
    assert f"missing  {length}" in refusal(write(tmp_path, arrays, use_dora=True))
    assert f"without use_dora  {length}" in refusal(write(tmp_path, with_lengths()))
    arrays[length] = np.ones(5, np.float32)
    assert f"shape  {length}  wanted [64], got [5]" in refusal(write(tmp_path, arrays, use_dora=True))


def test_fields_of_how_it_was_made_have_no_effect(tmp_path):
    fields = {"lora_dropout": 0.1, "task_type": "CAUSAL_LM", "peft_version": "0.21.2", "runtime_config": {"a": 1}}
    assert read_adapter(write(tmp_path, **fields, use_dora=False, modules_to_save=None), CONFIG).rank == 4


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(StorageError, match="there is no such directory"):
        read_adapter(tmp_path / "none", CONFIG)
    assert "must hold adapter_config.json to be an adapter" in refusal(tmp_path)
    write(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    assert "must hold adapter_model.safetensors beside" in refusal(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin, which is pickled code and is not run" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    assert "must hold at least one matrix of the model, and it holds none" in refusal(write(tmp_path, {}))


def test_integers_are_refused(tmp_path):
    arrays = tensors()
    arrays[Q_A] = arrays[Q_A].astype(np.int8)
    assert f"dtype  {Q_A}  wanted F32, F16, BF16, got I8" in refusal(write(tmp_path, arrays))
