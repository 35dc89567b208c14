"""Adapters in a batch against models with the adapter merged into their weights, one by one, in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunked_model import hidden_by_chunks
from small_models import random_arrays, random_ids, small_config

from gemworks.model.gemma3 import build, full_batch
from gemworks.model.lora import TARGETS, Adapters, Delta, target_shape
from gemworks.ops import layout, select
from gemworks.ops.adapted import Adapted, linear, own_columns
from gemworks.ops.weight import PackedWeight
from gemworks.quant.formats import dequantize
from gemworks.quant.rtn import quantize

CONFIG = small_config(model_dim=64, head_dim=32)
SLOTS, RANK = 3, 4


@pytest.fixture(params=select.available(), autouse=True)
def backend(request):
    with select.force("*", request.param):
        yield request.param


def matrix_name(layer: int, target: str) -> str:
    return f"layers.{layer}.{'attn' if target in ('q', 'k', 'v', 'o') else 'ffw'}.{target}.weight"


def some_adapters(targets=TARGETS, seed: int = 3) -> Adapters:
    """Return every slot full, large enough to change an answer wholly."""
    rng = np.random.default_rng(seed)

    def delta(target):
        F, D = target_shape(CONFIG, target)
        a, b = rng.normal(0, 0.3, (SLOTS * RANK, D)), rng.normal(0, 0.3, (F, SLOTS * RANK))
        return Delta(a.astype(np.float32), b.astype(np.float32))

    return Adapters(tuple({target: delta(target) for target in targets} for _ in CONFIG.layers), RANK)


def model_of(arrays):
    return build(CONFIG, lambda name, shape: jnp.asarray(arrays[name]))


def merged(arrays, adapters: Adapters, slot: int):
    """The weights with one slot's B A added, in float64."""
    out = dict(arrays)
    own = slice((slot - 1) * RANK, slot * RANK)
    for i, layer in enumerate(adapters.layers):
        for target, delta in layer.items():
            name = matrix_name(i, target)
            product = delta.b_FP[:, own].astype(np.float64) @ delta.a_PD[own].astype(np.float64)
            out[name] = (out[name] + product).astype(np.float32)
    return out


@functools.cache
def _hidden(backend: str):
    """One compiled function for each backend: jax keeps traces by function, also those of another backend."""
    return jax.jit(lambda model, batch, adapters: model(batch, adapters=adapters)[0])


def hidden(model, ids, adapters=None, adapter_T=None, segment_T=None) -> np.ndarray:
    segments = None if segment_T is None else jnp.asarray(segment_T)
    batch = full_batch(jnp.asarray(ids, jnp.int32), CONFIG, segments, adapter_T=adapter_T)
    return np.asarray(_hidden(select.choose("linear").backend)(model, batch, adapters))


@pytest.mark.parametrize("targets", [TARGETS, ("q", "v"), ("down",)], ids=str)
def test_each_text_of_a_batch_is_that_of_its_merged_model(targets):
    """Four texts in one batch, three adapters and none, against four models computed one by one."""
    arrays, adapters = random_arrays(CONFIG), some_adapters(targets)
    slots = [2, 0, 1, 3]
    texts = [random_ids(CONFIG, 9 + slot, seed=slot) for slot in slots]
    lengths = [len(text) for text in texts]
    got = hidden(
        model_of(arrays),
        np.concatenate(texts),
        adapters,
        np.repeat(np.array(slots, np.int32), lengths),
        np.repeat(np.arange(4, dtype=np.int32), lengths),
    )
    plain = hidden(model_of(arrays), texts[0])
    for slot, text, part in zip(slots, texts, np.split(got, np.cumsum(lengths)[:-1]), strict=True):
        expected = hidden(model_of(merged(arrays, adapters, slot) if slot else arrays), text)
        np.testing.assert_allclose(part, expected, atol=2e-4)
    assert np.abs(plain - got[: lengths[0]]).max() > 0.3, "the adapter changes nothing"


def test_tokens_of_one_text_may_differ_in_adapter():
    """The adapter is the token's: what is computed before a change of adapter does not know of the later one."""
    arrays, adapters, ids = random_arrays(CONFIG), some_adapters(), random_ids(CONFIG, 12)
    adapter_T = np.repeat(np.array([1, 2], np.int32), 6)
    got = hidden(model_of(arrays), ids, adapters, adapter_T)
    np.testing.assert_allclose(got[:6], hidden(model_of(merged(arrays, adapters, 1)), ids)[:6], atol=2e-4)


def test_no_adapter_changes_no_bit():
    """A row of slot 0 is the same beside rows of an adapter, of a hundred times that, of none, and in a plain step."""
    arrays, adapters, ids = random_arrays(CONFIG), some_adapters(), random_ids(CONFIG, 16)
    segments = np.repeat(np.arange(2, dtype=np.int32), 8)
    adapter_T = np.array([0] * 8 + [1] * 8, np.int32)
    model = model_of(arrays)
    got = hidden(model, ids, adapters, adapter_T, segments)[:8]
    none = jax.tree.map(np.zeros_like, adapters)
    np.testing.assert_array_equal(
        got.view(np.int32), hidden(model, ids, none, 0 * adapter_T, segments)[:8].view(np.int32)
    )
    larger = jax.tree.map(lambda array: 100 * array, adapters)
    beside_larger = hidden(model, ids, larger, adapter_T, segments)[:8]
    np.testing.assert_array_equal(got.view(np.int32), beside_larger.view(np.int32))
    plain = hidden(model, ids, segment_T=segments)[:8]
    np.testing.assert_array_equal(got.view(np.int32), plain.view(np.int32))


def test_a_token_without_adapter_gets_the_base_product_as_it_is():
    """Not the product plus zero: that would turn -0 to 0, and to NaN beside an adapter that is not finite."""
    own_TP = own_columns(np.array([0, 1]), rank=1, columns=2)
    weight = Adapted(jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.full((2, 2), jnp.nan), own_TP)
    y_TF = np.asarray(linear(jnp.ones((2, 3)), weight, product=lambda x, w: -0.0 * (x @ w.T)))
    assert np.signbit(y_TF[0]).all() and (y_TF[0] == 0).all()
    assert np.isnan(y_TF[1]).all()


def test_an_adapter_is_the_same_beside_others_and_alone():
    arrays, adapters, ids = random_arrays(CONFIG), some_adapters(), random_ids(CONFIG, 10)
    alone = jax.tree.map(np.zeros_like, adapters)
    for one, every in zip(alone.layers, adapters.layers, strict=True):
        for target, delta in one.items():
            delta.a_PD[RANK : 2 * RANK] = every[target].a_PD[RANK : 2 * RANK]
            delta.b_FP[:, RANK : 2 * RANK] = every[target].b_FP[:, RANK : 2 * RANK]
    slot_T = np.full(10, 2, np.int32)
    model = model_of(arrays)
    np.testing.assert_array_equal(hidden(model, ids, alone, slot_T), hidden(model, ids, adapters, slot_T))


@pytest.mark.parametrize("chunks", [[13], [4, 9], [12, 1], [5, 1, 1, 6]])
def test_chunks_over_rings_and_pages(chunks):
    """The whole text without a cache, and by chunks over one."""
    arrays, adapters, ids = random_arrays(CONFIG), some_adapters(), random_ids(CONFIG, 13)
    slot_T = np.full(13, 3, np.int32)
    expected = hidden(model_of(merged(arrays, adapters, 3)), ids)
    got = hidden_by_chunks(model_of(arrays), ids, chunks, adapters=adapters, adapter_T=slot_T)
    np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_quantized_base_has_adapters_too(packed):
    """The base keeps its codes; the adapter adds to its product what it adds to the product of a float matrix."""
    arrays, adapters, ids = random_arrays(CONFIG), some_adapters(), random_ids(CONFIG, 11)
    stored = {name: quantize(array, "int8-b32") for name, array in arrays.items() if array.ndim == 2}

    def leaf(name, shape):
        if name not in stored or not name.startswith("layers"):
            return jnp.asarray(arrays[name])
        weight = stored[name]
        if packed:
            return PackedWeight(jnp.asarray(layout.pack(weight)), weight.format, weight.shape)
        return jax.tree.map(jnp.asarray, weight)

    model = build(CONFIG, leaf)
    slot_T = np.full(11, 1, np.int32)
    got = hidden(model, ids, adapters, slot_T)
    exact = {
        name: dequantize(stored[name]) if name in stored and name.startswith("layers") else arrays[name]
        for name in arrays
    }
    expected = hidden(model_of(merged(exact, adapters, 1)), ids)
    plain = hidden(model, ids)
    # The packed kernels round activations to int8 (docs/numerics.md); so they do without an adapter.
    base_error = np.abs(plain - hidden(model_of(exact), ids)).max()
    assert np.abs(got - expected).max() <= max(2e-4, 3 * base_error)
    assert np.abs(expected - plain).max() > 10 * base_error
    unchanged = hidden(model, ids, adapters, 0 * slot_T)
    np.testing.assert_allclose(unchanged, plain, atol=1e-5)  # the kernels sum a norm in another order


def test_a_step_without_adapters_keeps_its_kernels(backend):
    """Only a step that has adapters is computed product by product."""
    model, ids = model_of(random_arrays(CONFIG)), jnp.zeros(3, jnp.int32)
    quantized = jax.tree.map(
        lambda w: (
            PackedWeight(jnp.asarray(layout.pack(quantize(np.asarray(w), "int8-b32"))), "int8-b32", w.shape)
            if w.ndim == 2
            else w
        ),
        model,
    )
    adapter_T = np.zeros(3, np.int32)

    def calls(adapters):
        batch = full_batch(ids, CONFIG, adapter_T=adapter_T)
        return str(jax.make_jaxpr(lambda model, batch: model(batch, adapters=adapters)[0])(quantized, batch))

    assert ("gemworks_block_tail" in calls(None)) == (backend == "cpu")
    assert "gemworks_block_tail" not in calls(some_adapters())
