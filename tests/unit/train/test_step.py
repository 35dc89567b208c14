"""One step: accumulation and the head in parts change nothing, logits never exist, bad steps change nothing."""

import re
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nano_runs import RandomRows, nano_recipe

from gemworks.model.gemma3 import full_batch
from gemworks.ops import select
from gemworks.ops.train.cross_entropy import cross_entropy
from gemworks.ops.train.head import num_parts, token_logits
from gemworks.ops.train.product import embed
from gemworks.train.feed import put_batch
from gemworks.train.forward import hidden, model_of
from gemworks.train.loop import Run, begin
from gemworks.train.loss import Call, NextToken, Terms
from gemworks.train.recipe import Optimizer
from gemworks.train.state import random_params
from gemworks.train.step import gradient, make_step


def start(recipe):
    return begin(Run(recipe, RandomRows(recipe)), None, None)


def some_batch(recipe, step=0):
    return put_batch(RandomRows(recipe).batch(step), recipe, None)


def gradient_of(recipe, batch):
    state = start(recipe)
    compute = jax.jit(lambda state, batch: gradient(recipe, state, batch, None, None))
    grads, terms = compute(state, put_batch(batch, recipe, None))
    return {name: np.asarray(g) / float(terms.weight) for name, g in grads.items()}, float(terms.total / terms.weight)


def test_micro_batches_and_kept_layers_have_the_gradient_of_one_batch():
    """Four micro-batches of two rows whose masks leave very different numbers of targets; layers not recomputed."""
    recipe = nano_recipe(method=NextToken(z_loss=1e-2))
    batch = RandomRows(recipe).batch(0)
    weights = batch.loss_mask_BT.reshape(4, -1).sum(axis=1)
    assert weights.max() > 3 * weights.min(), "unequal, or a mean of means would pass"
    whole, loss = gradient_of(recipe, batch)
    other = replace(recipe, accumulate=4, execution=replace(recipe.execution, remat=False))
    parts, loss_of_parts = gradient_of(other, batch)
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)
    for name, g in whole.items():
        assert np.abs(parts[name] - g).max() <= 1e-5 * np.abs(g).max(), name


@jax.jit
def scored(model, ids_T, segment_T):
    with select.force("*", "xla"):
        return model.logits(model(full_batch(ids_T, model.config, segment_T))[0])


def test_loss_is_that_of_whole_logits_on_the_serving_path():
    """Against a plain softmax over logits of the model as scoring runs it, row by row; parts of 52 of 256 tokens."""
    recipe = nano_recipe(method=NextToken(z_loss=0.5, logits_at_once=160 * 60))
    rows = RandomRows(recipe).batch(3)
    model = model_of({k: jnp.asarray(v) for k, v in random_params(recipe.model, 0).items()}, recipe.model)
    got = jax.jit(lambda m: recipe.method(m, rows, Call(jax.random.key(0))))(model)
    total = 0.0
    for b in range(recipe.rows):
        logits = np.asarray(scored(model, rows.ids_BT[b], rows.segment_BT[b]), np.float64)
        log_total = np.log(np.exp(logits).sum(axis=1))
        nll = log_total - logits[np.arange(recipe.tokens), rows.targets_BT[b]]
        total += ((nll + 0.5 * log_total**2) * rows.loss_mask_BT[b]).sum()
    assert float(got.total) == pytest.approx(total, rel=1e-5)
    assert float(got.weight) == rows.loss_mask_BT.sum()


@pytest.mark.parametrize("chosen", [1, 5])
def test_head_in_parts_against_autodiff_of_whole_logits(chosen):
    rng = np.random.default_rng(0)
    h, head = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 16), (60, 16)))
    ids = jnp.asarray(rng.integers(0, 60, (2, 3, chosen)))
    ids = ids.at[0, 0].set(7)  # equal ids add up
    d_total, d_chosen = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=(2, 3, chosen)))

    def score(log_total, picked):
        return (log_total * d_total).sum() + (picked * d_chosen).sum()

    def plain(h, head):
        logits = jnp.einsum("btd,vd->btv", h, head, precision="highest")
        return score(jax.nn.logsumexp(logits, axis=-1), jnp.take_along_axis(logits, ids, axis=-1))

    def in_parts(h, head):
        return score(*token_logits(h, head, ids, words_at_once=13))

    assert num_parts(60, 13) == 5
    (want, want_grads), (got, got_grads) = (jax.value_and_grad(f, (0, 1))(h, head) for f in (plain, in_parts))
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    for one, other in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("logits_at_once", [360, 180, 90])  # one part, two, four of which the last is padding
def test_cross_entropy_of_some_tokens_at_a_time_against_autodiff_of_whole_logits(logits_at_once):
    rng = np.random.default_rng(1)
    h, head = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 16), (60, 16)))
    targets, weight = jnp.asarray(rng.integers(0, 60, (2, 3))), jnp.asarray([[0, 1, 0.5], [2, 0, 1]], jnp.float32)

    def plain(h, head):
        logits = jnp.einsum("btd,vd->btv", h, head, precision="highest")
        log_total = jax.nn.logsumexp(logits, axis=-1)
        nll = (weight * (log_total - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0])).sum()
        return nll + 0.3 * (weight * log_total**2).sum(), nll

    def in_parts(h, head):
        return cross_entropy(h, head, targets, weight, z_loss=0.3, logits_at_once=logits_at_once)

    (want, want_grads), (got, got_grads) = (
        jax.value_and_grad(lambda *x, f=f: 3 * f(*x)[0], (0, 1))(h, head) for f in (plain, in_parts)
    )
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(in_parts(h, head), plain(h, head), rtol=1e-5)
    for one, other in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


class Key(NamedTuple):
    """A method that shows what its key draws."""

    def __call__(self, model, rows, call):
        drawn = jax.random.uniform(call.key)
        return Terms(0 * model.final_norm.scale.sum(), jnp.ones(()), {"drawn": drawn, "squared": drawn**2})


def test_every_micro_batch_of_every_step_draws_for_itself():
    """What Distill and OnPolicy draw with: both micro-batches of a step, and the next step's, have their own keys."""
    recipe = replace(nano_recipe(), method=Key(), accumulate=2)
    state, batch = start(recipe), some_batch(recipe)
    compute = jax.jit(lambda state: gradient(recipe, state, batch, None, None)[1].more)
    one, again, other = compute(state), compute(state), compute(state._replace(step=state.step + 1))
    apart = 2 * one["squared"] - one["drawn"] ** 2  # (a - b)^2
    assert float(apart) > 1e-4
    assert float(one["drawn"]) == float(again["drawn"]) != float(other["drawn"])


@pytest.mark.exhaustive
def test_no_array_of_the_step_is_as_large_as_the_logits():
    """In the compiled program: no shape of B x T x V elements, and less room for temporaries than the logits need."""
    recipe = nano_recipe(method=NextToken(logits_at_once=16 * 16_384), rows=4, tokens=128)
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=16_384))
    logits = recipe.rows * recipe.tokens * recipe.model.vocab_size

    def lowered(recipe):
        state, batch = (jax.eval_shape(f) for f in (lambda: start(recipe), lambda: some_batch(recipe)))
        return jax.jit(lambda state, batch: gradient(recipe, state, batch, None, None)).lower(state, batch)

    def largest(text: str) -> int:
        shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", text) or re.findall(r"tensor<([\dx]+)x[a-z]", text)
        return max(int(np.prod([int(n) for n in re.split("[,x]", shape)])) for shape in shapes)

    whole = lowered(replace(recipe, method=NextToken(logits_at_once=1 << 30))).as_text()
    assert largest(whole) >= logits, "the search finds logits where there are some"
    program = lowered(recipe).compile()
    assert largest(program.as_text()) < logits / 8
    assert program.memory_analysis().temp_size_in_bytes < logits * 4


@pytest.mark.exhaustive
def test_bf16_step_learns_and_keeps_fp32_parameters():
    recipe = nano_recipe(dtype="bfloat16", steps=30, optimizer=Optimizer(peak=1e-2, clip=1.0))
    state, step, losses = start(recipe), make_step(recipe), []
    for n in range(recipe.steps):
        state, seen = step(state, np.int32(n), some_batch(recipe, n), None)
        losses.append(float(seen.loss))
    assert all(array.dtype == jnp.float32 for array in state.params.values())
    assert losses[0] > 4.5 and losses[-1] < 2.5, losses


def test_embedding_gradient_of_a_common_word_is_summed_in_fp32():
    """2,000 equal additions: a bf16 sum would stop at 256 of them."""
    ids_BT = np.zeros((1, 2000), np.int32)
    table = jnp.zeros((4, 8), jnp.bfloat16)
    gradient = jax.grad(lambda table: embed(ids_BT, table, scale=1.0).sum())(table)
    assert float(gradient[0, 0]) == 2000


@pytest.mark.exhaustive
def test_row_of_a_batch_does_not_see_another():
    recipe = nano_recipe()
    rows = RandomRows(recipe).batch(0)
    model = model_of({k: jnp.asarray(v) for k, v in random_params(recipe.model, 0).items()}, recipe.model)
    changed = rows._replace(ids_BT=rows.ids_BT.copy())
    changed.ids_BT[1:] += 1
    compute = jax.jit(hidden)
    one, other = compute(model, rows), compute(model, changed)
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(np.asarray(one[1:] - other[1:])).max() > 0.1
