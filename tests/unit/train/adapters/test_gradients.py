"""Gradients of adapters, against those of whole matrices: d/dA and d/dB follow from d/dW by the product rule.

The way to d/dW is the trainer of whole models, whose own gradients are held to torch autograd (tests/oracle/train).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapted_runs import adapted_recipe, base_of, floats, moved, run_of, some_batch, some_rows

from gemworks.quant.formats import dequantize
from gemworks.quant.rtn import quantize
from gemworks.train.adapters.kinds import LoRA, PromptTuning, base_plan, targeted
from gemworks.train.forward import parameter_shapes
from gemworks.train.loss import Call
from gemworks.train.recipe import Optimizer
from gemworks.train.step import gradient
from gemworks.train.trained import Frozen, new_params, trained_model, trained_shapes

METHODS = {
    "lora": LoRA(rank=3, alpha=6.0),
    "rslora": LoRA(rank=4, alpha=3.0, rslora=True, targets="q,down"),
    "dora": LoRA(rank=3, alpha=5.0, dora=True, targets="q,k,v,o,gate,up,down"),
}


def loss_of(recipe, params, base, key=None):
    terms = recipe.method(trained_model(recipe, params, base, key), some_rows(recipe), Call(jax.random.key(0)))
    return terms.total / terms.weight


def whole(recipe, params, arrays) -> dict[str, jax.Array]:
    """The base's parameters with the adapter's additions, as a function of the adapter's; norms held constant."""
    full, adapter = {k: jnp.asarray(v) for k, v in arrays.items()}, recipe.adapter
    for name in targeted(adapter, recipe.model):
        total = full[f"{name}.weight"] + adapter.scale * params[f"{name}.b"] @ params[f"{name}.a"]
        if adapter.dora:
            length = jax.lax.stop_gradient(jnp.linalg.norm(total, axis=1))
            total = total * (params[f"{name}.magnitude"] / length)[:, None]
        full[f"{name}.weight"] = total
    return full


@pytest.mark.parametrize(
    "method", ["dora", *(pytest.param(m, marks=pytest.mark.exhaustive) for m in ("lora", "rslora"))]
)
def test_gradients_are_those_of_the_merged_matrices(method):
    recipe = adapted_recipe(METHODS[method])
    arrays, base = floats(recipe), base_of(recipe)
    params = moved(recipe, base)
    plain = replace(recipe, adapter=None)
    value, got = jax.jit(jax.value_and_grad(lambda p, base: loss_of(recipe, p, base)))(params, base)
    wanted_value, wanted = jax.jit(jax.value_and_grad(lambda p: loss_of(plain, whole(recipe, p, arrays), None)))(params)
    assert float(value) == pytest.approx(float(wanted_value), rel=1e-5)
    assert set(got) == set(trained_shapes(recipe))
    for name, expected in wanted.items():
        error, size = (np.linalg.norm(np.asarray(x)) for x in (got[name] - expected, expected))
        assert size > 1e-6 and error <= 1e-4 * size, (name, error / size)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("base", ["", "int4-b32,embed=int8"])
def test_a_new_adapter_changes_nothing(dora, base):
    recipe = adapted_recipe(LoRA(rank=4, dora=dora, base=base))
    held = base_of(recipe)
    h = trained_model(recipe, {k: jnp.asarray(v) for k, v in new_params(recipe, held).items()}, held)
    plain = jax.jit(lambda m: recipe.method(m, some_rows(recipe), Call(jax.random.key(0))).total)
    assert float(plain(h)) == pytest.approx(float(plain(held.model)), rel=1e-6)


@pytest.mark.exhaustive
def test_a_quantized_base_has_the_gradient_of_the_matrices_it_stands_for():
    recipe = adapted_recipe(LoRA(rank=3, dora=True, base="int4-b32,embed=int8-b32"))
    plan, arrays = base_plan(recipe.adapter), floats(recipe)
    assert plan is not None
    formats = {name: plan.format_of(name, shape) for name, shape in parameter_shapes(recipe.model).items()}
    stands_for = {n: dequantize(quantize(arrays[n], f)) if f else arrays[n] for n, f in formats.items()}
    assert max(np.abs(stands_for[n] - arrays[n]).max() for n, f in formats.items() if f) > 1e-3
    quantized = base_of(recipe)
    plain_recipe = replace(recipe, adapter=replace(recipe.adapter, base=""))
    plain = base_of(plain_recipe, stands_for)
    params = moved(recipe, quantized)
    compute = jax.jit(lambda p, base: jax.value_and_grad(lambda p: loss_of(recipe, p, base))(p))
    (value, got), (wanted_value, wanted) = compute(params, quantized), compute(params, plain)
    assert float(value) == pytest.approx(float(wanted_value), rel=1e-5)
    for name, expected in wanted.items():
        assert np.linalg.norm(got[name] - expected) <= 1e-4 * np.linalg.norm(expected), name


@pytest.mark.exhaustive
def test_dropout_is_drawn_anew_in_training_only():
    recipe = adapted_recipe(LoRA(rank=3, dropout=0.5))
    base = base_of(recipe)
    params = moved(recipe, base)
    compute = jax.jit(lambda key: loss_of(recipe, params, base, key))
    one, same, other = (float(compute(jax.random.key(k))) for k in (1, 1, 2))
    assert one == same != other
    without = float(jax.jit(lambda: loss_of(recipe, params, base))())
    dry = replace(recipe, adapter=replace(recipe.adapter, dropout=0.0))
    assert without == pytest.approx(float(jax.jit(lambda: loss_of(dry, params, base, jax.random.key(1)))()), rel=1e-6)
    mean = np.mean([float(compute(jax.random.key(k))) for k in range(3, 40)])
    assert abs(mean - without) < 0.2 * without


@pytest.mark.exhaustive
def test_micro_batches_and_kept_layers_change_nothing():
    recipe = adapted_recipe(METHODS["dora"])
    base = base_of(recipe)
    state = start(recipe, base)
    other = replace(recipe, accumulate=4, execution=replace(recipe.execution, remat=False))

    def compute(recipe):
        batch = some_batch(recipe)
        made = jax.jit(lambda state, base: gradient(recipe, state, batch, Frozen(base, None), None))
        grads, terms = made(state, base)
        return {name: np.asarray(g) / float(terms.weight) for name, g in grads.items()}

    whole, parts = compute(recipe), compute(other)
    for name, g in whole.items():
        assert np.abs(parts[name] - g).max() <= 1e-5 * max(np.abs(g).max(), 1e-6), name


def start(recipe, base):
    from gemworks.train.loop import begin

    return begin(run_of(recipe, base), None, None)._replace(params=moved(recipe, base))


@pytest.mark.exhaustive
def test_a_soft_prompt_is_words_that_are_not_in_the_table():
    """A prompt of the embeddings of words gives the loss of a text that begins with these words, and its gradient."""
    recipe = adapted_recipe(PromptTuning(tokens=3, text_ids=(7, 9, 11)), optimizer=Optimizer(weight_decay=0.0))
    base, V = base_of(recipe), recipe.model.vocab_size
    rows = some_rows(recipe)
    first = rows.position_BT < 3
    ids = np.where(first, V + rows.position_BT, rows.ids_BT).astype(np.int32)
    words = np.where(first, np.array([7, 9, 11])[np.minimum(rows.position_BT, 2)], rows.ids_BT).astype(np.int32)
    params = {k: jnp.asarray(v) for k, v in new_params(recipe, base).items()}

    def loss(params, ids):
        made = recipe.method(trained_model(recipe, params, base), rows._replace(ids_BT=ids), Call(jax.random.key(0)))
        return made.total / made.weight

    value, got = jax.jit(jax.value_and_grad(loss))(params, ids)
    plain = jax.jit(lambda: recipe.method(base.model, rows._replace(ids_BT=words), Call(jax.random.key(0))))()
    assert float(value) == pytest.approx(float(plain.total / plain.weight), rel=1e-6)
    step = 1e-2 * got["prompt.weight"] / jnp.linalg.norm(got["prompt.weight"])
    ahead, behind = (float(loss({"prompt.weight": params["prompt.weight"] + s * step}, ids)) for s in (1, -1))
    assert (ahead - behind) / 2e-2 == pytest.approx(float(jnp.linalg.norm(got["prompt.weight"])), rel=1e-2)
