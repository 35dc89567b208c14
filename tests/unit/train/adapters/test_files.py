"""Adapters on disk: what is saved is what is served, merged and trained further."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapted_runs import adapted_recipe, base_of, floats, moved

from gemworks.engine.adapters import AdapterPool
from gemworks.engine.gains import row_gains
from gemworks.errors import CheckpointError, ConfigError
from gemworks.model.gemma3 import build, full_batch
from gemworks.ops import layout
from gemworks.ops.weight import PackedWeight
from gemworks.quant.formats import dequantize
from gemworks.quant.rtn import quantize
from gemworks.train.adapters.base import read_base
from gemworks.train.adapters.kinds import LoRA, PromptTuning
from gemworks.train.adapters.merge import merge
from gemworks.train.adapters.peft import read_trained, save_adapter
from gemworks.train.forward import Rows, hidden
from gemworks.train.trained import trained_model
from gemworks.weights.adapter import read_adapter
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import load_model
from gemworks.weights.save import Source, save_hf

KINDS = {
    "lora": LoRA(rank=3, alpha=5.0),
    "rslora, some": LoRA(rank=4, alpha=6.0, rslora=True, targets="layers.1.attn.*,down", dropout=0.1),
    "dora": LoRA(rank=2, alpha=3.0, dora=True),
    "prompt": PromptTuning(tokens=5),
}
IDS = np.random.default_rng(1).integers(3, 150, 21).astype(np.int32)


def made(kind: str):
    """(recipe, base, parameters that change something)."""
    recipe = adapted_recipe(KINDS[kind])
    base = base_of(recipe)
    return recipe, base, moved(recipe, base)


def trained_states(recipe, base, params) -> np.ndarray:
    """States of the ids as the trainer computes them."""
    T = len(IDS)
    zeros = np.zeros((1, T), np.int32)
    rows = Rows(IDS[None], zeros, zeros.astype(np.float32), zeros, np.arange(T, dtype=np.int32)[None])
    return np.asarray(jax.jit(lambda p, base: hidden(trained_model(recipe, p, base), rows))(params, base))[0]


@jax.jit
def served(model, batch, adapters=None):
    return model(batch, adapters=adapters)[0]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The base as a model directory, fp32."""
    recipe = adapted_recipe(KINDS["lora"])
    arrays = floats(recipe)
    out = tmp_path_factory.mktemp("model") / "base"
    save_hf(out, recipe.model, {n: Source("F32", lambda n=n: np.asarray(arrays[n], np.float32)) for n in arrays})
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_is_what_was_saved(kind, tmp_path):
    recipe, _, params = made(kind)
    save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model, base_name="some/model")
    adapter, again = read_trained(tmp_path / "a", recipe.model)
    if kind == "rslora, some":
        assert set(adapter.targets) == {"layers.0.ffw.down", "layers.1.ffw.down"} | {
            f"layers.1.attn.{t}" for t in "qkvo"
        }
        adapter = replace(adapter, targets=recipe.adapter.targets)
    assert adapter == recipe.adapter
    assert set(again) == set(params)
    for name, array in params.items():
        np.testing.assert_array_equal(again[name], array)
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "some/model"
    if kind == "dora":
        assert told["target_modules"] == [f"{t}_proj" for t in ("q", "k", "v", "o", "gate", "up", "down")]
    with pytest.raises(ConfigError, match="exists already"):
        save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model)
    save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model, force=True)


@pytest.mark.parametrize(
    "kind", ["dora", *(pytest.param(k, marks=pytest.mark.exhaustive) for k in ("lora", "rslora, some"))]
)
def test_served_merged_and_trained_are_one(kind, directory, tmp_path):
    """Three ways to the same states: the trainer's, a slot of the engine's, and the merged model's; beside slot 0."""
    recipe, base, params = made(kind)
    expected = trained_states(recipe, base, params)
    save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model)
    adapter = read_adapter(tmp_path / "a", recipe.model)
    with open_checkpoint(directory) as checkpoint:
        model = load_model(checkpoint)
    pool = AdapterPool(recipe.model, slots=2, max_rank=4)
    slot = pool.load("one", adapter, row_gains(model, adapter) or None)
    assert pool.nbytes == sum(x.nbytes for x in jax.tree.leaves(pool.adapters))

    def states(slot):
        adapter_T = np.full(len(IDS), slot, np.int32)
        return np.asarray(served(model, full_batch(jnp.asarray(IDS), recipe.model, adapter_T=adapter_T), pool.adapters))

    np.testing.assert_allclose(states(slot), expected, atol=1e-4)
    plain = np.asarray(served(model, full_batch(jnp.asarray(IDS), recipe.model)))
    np.testing.assert_allclose(states(0), plain, atol=1e-5)
    assert np.abs(expected - plain).max() > 0.05, "the adapter changes nothing"
    merge(directory, tmp_path / "a", tmp_path / "merged")
    with open_checkpoint(tmp_path / "merged") as checkpoint:
        assert {entry.dtype for entry in checkpoint.entries.values()} == {"F32"}
        whole = load_model(checkpoint)
    np.testing.assert_allclose(served(whole, full_batch(jnp.asarray(IDS), recipe.model)), expected, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_gains_of_a_quantized_matrix_are_those_of_what_it_stands_for(packed, tmp_path):
    recipe, _, params = made("dora")
    save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model)
    adapter = read_adapter(tmp_path / "a", recipe.model)
    arrays = floats(recipe)
    quantized = {n: quantize(np.asarray(x, np.float32), "int4-b32") for n, x in arrays.items() if x.ndim == 2}

    def leaf(name, shape):
        if name not in quantized:
            return jnp.asarray(arrays[name])
        one = quantized[name]
        return PackedWeight(jnp.asarray(layout.pack(one)), one.format, one.shape) if packed else one

    gains = row_gains(build(recipe.model, leaf), adapter)
    delta = adapter.deltas[1, "down"]
    total = dequantize(quantized["layers.1.ffw.down.weight"]) + delta.b_Fr @ delta.a_rD
    np.testing.assert_allclose(gains[1, "down"] * np.linalg.norm(total, axis=1), delta.magnitude_F, rtol=1e-5)


def test_merging_rounds_once_to_the_stored_dtype(directory, tmp_path):
    """bf16: the fp32 sum, rounded to the nearest; what is not adapted keeps its bytes."""
    import ml_dtypes

    from gemworks.weights.convert import convert

    recipe, _, params = made("rslora, some")
    save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model)
    convert(directory, tmp_path / "half", outtype="bfloat16")
    merge(tmp_path / "half", tmp_path / "a", tmp_path / "merged")
    deltas = read_adapter(tmp_path / "a", recipe.model).deltas
    with open_checkpoint(tmp_path / "half") as before, open_checkpoint(tmp_path / "merged") as after:
        for name in before.entries:
            old, new = before.read(name), after.read(name)
            assert old.dtype == new.dtype == ml_dtypes.bfloat16
            parts = name.split(".")
            delta = deltas.get((int(parts[1]), parts[3])) if name.endswith("weight") and len(parts) == 5 else None
            if delta is None:
                np.testing.assert_array_equal(old.view(np.uint16), new.view(np.uint16))
                continue
            total = old.astype(np.float64) + delta.b_Fr.astype(np.float64) @ delta.a_rD
            off = np.abs(new.astype(np.float64) - total)
            assert (off <= np.abs(total) * 2.0**-8 * 1.01 + 1e-30).all(), "not the nearest bf16"


def test_a_base_is_read_in_the_format_that_is_named(directory):
    with open_checkpoint(directory) as checkpoint:
        base = read_base(checkpoint, LoRA(base="int4-b32,embed=int8", dora=True), dtype="bfloat16")
        plain = read_base(checkpoint, LoRA(), dtype="float32")
        arrays = {name: np.array(checkpoint.read(name)) for name in checkpoint.entries}
    gate = base.model.layers[1].ffw.gate.weight
    np.testing.assert_array_equal(gate.weight.codes, quantize(arrays["layers.1.ffw.gate.weight"], "int4-b32").codes)
    assert base.model.embed.weight.weight.format == "int8" and base.nbytes < plain.nbytes / 3
    np.testing.assert_array_equal(plain.model.embed.weight.weight, arrays["embed.weight"])
    up = dequantize(quantize(arrays["layers.0.ffw.up.weight"], "int4-b32"))
    np.testing.assert_allclose(base.squares["layers.0.ffw.up"], (up**2).sum(axis=1), rtol=1e-2)


def test_a_prompt_is_not_merged(directory, tmp_path):
    recipe, _, params = made("prompt")
    save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model)
    with pytest.raises(ConfigError, match="it is a soft prompt"):
        merge(directory, tmp_path / "a", tmp_path / "out")


def test_ranks_of_their_own_are_not_trained_further(tmp_path):
    recipe, _, params = made("lora")
    params = {n: x[:2] if n.endswith("q.a") else x[:, :2] if n.endswith("q.b") else x for n, x in params.items()}
    save_adapter(tmp_path / "a", recipe.adapter, params, recipe.model)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rank_pattern": {"q_proj": 2}}))
    with pytest.raises(CheckpointError, match=r"it has ranks \[2, 3\]"):
        read_trained(tmp_path / "a", recipe.model)
    assert read_adapter(tmp_path / "a", recipe.model).rank == 3
