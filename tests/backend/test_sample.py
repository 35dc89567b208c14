"""Drawing on every backend: the distribution is what the filters define, and penalties are their formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import ops
from gemworks.engine.sampler import RowSampler, fast_choice, full_arguments, full_choice, row_params
from gemworks.engine.types import SamplingParams
from gemworks.ops import layout, select
from gemworks.ops.sampling import Penalties, SampleParams
from gemworks.ops.weight import PackedWeight
from gemworks.ops.xla import sample
from gemworks.quant.rtn import quantize

V = 40
DRAWS = 20_000


@pytest.fixture(params=select.available(), autouse=True)
def backend(request):
    with select.force("*", request.param):
        yield request.param


def params(rows: int, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> SampleParams:
    def column(value, dtype):
        return jnp.full(rows, value, dtype)

    return SampleParams(
        temperature_R=column(temperature, jnp.float32),
        top_k_R=column(top_k, jnp.int32),
        top_p_R=column(top_p, jnp.float32),
        min_p_R=column(min_p, jnp.float32),
        seed_R2=jnp.tile(jnp.array([0, 17], jnp.uint32), (rows, 1)),
        index_R=jnp.arange(rows, dtype=jnp.int32),
    )


def filtered(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """Return probabilities by the definitions, one token at a time, in float64."""
    values = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-values)
    kept = list(order[: top_k or V])
    probs = np.zeros(V)
    probs[kept] = np.exp(values[kept] - values[order[0]])
    probs /= probs.sum()
    nucleus, mass = [], 0.0
    for token in kept:
        if mass >= top_p and top_p < 1.0:
            break
        nucleus.append(token)
        mass += probs[token]
    allowed = [token for token in nucleus if probs[token] >= min_p * probs[order[0]]]
    final = np.zeros(V)
    final[allowed] = probs[allowed]
    return final / final.sum()


CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 7},
    {"top_p": 0.6},
    {"top_k": 12, "top_p": 0.8},
    {"min_p": 0.2},
    {"top_k": 30, "top_p": 0.95, "min_p": 0.05, "temperature": 1.5},
]


# The short list is only promised rows with a top-k.
@pytest.mark.parametrize(
    ("case", "short"), [(case, short) for case in CASES for short in (False, True) if case.get("top_k") or not short]
)
def test_draws_follow_the_filtered_distribution(case, short):
    """Pearson's chi-square over 20,000 draws stays below the 1e-6 quantile, and no dropped token is ever drawn."""
    logits = np.random.default_rng(5).normal(0, 1.5, V).astype(np.float32)
    tiled = jnp.tile(jnp.asarray(logits), (DRAWS, 1))
    drawn = jax.jit(ops.sample, static_argnames="short")(tiled, params(DRAWS, **case), short=short)
    counts = np.bincount(np.asarray(drawn), minlength=V)
    expected = filtered(logits, **case) * DRAWS
    assert not counts[expected == 0].any()
    often = expected >= 5
    freedom = often.sum() - 1
    chi_square = ((counts - expected)[often] ** 2 / expected[often]).sum()
    # Wilson and Hilferty's approximation of the quantile at z = 4.75 (1e-6).
    limit = freedom * (1 - 2 / (9 * freedom) + 4.75 * np.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit


# What follows is ops/xla's on every backend.
once = pytest.mark.parametrize("backend", ["xla"], indirect=True)

LONG_CASES = [
    ({}, 0.5, 0.7),
    ({"temperature": 0.5}, 0.9, 0.95),
    ({"top_p": 0.5}, 0.99, 1.0),
    ({"top_p": 0.97}, 0.0, 0.0),  # more than the list holds: nothing is sure
    ({"min_p": 0.1}, 0.85, 0.95),
    ({"min_p": 0.0001}, 0.0, 0.0),
    ({"top_k": 60, "top_p": 0.9}, 1.0, 1.0),
    ({"top_k": 99, "min_p": 0.05}, 1.0, 1.0),
    ({"top_k": 100}, 0.0, 0.0),  # the 101st may equal the 100th
    ({"top_k": 300, "top_p": 0.9}, 0.0, 0.0),
    ({"temperature": 0.0, "top_k": 0}, 1.0, 1.0),
]


@once
@pytest.mark.parametrize(("case", "least", "most"), LONG_CASES, ids=str)
def test_a_long_list_draws_what_all_in_order_would(case, least, most):
    """Where 100 of 1,000 logits tell, they tell the same; how often they do is as the filters say."""
    logits = jnp.asarray(np.random.default_rng(4).normal(0, 1.5, (500, 1000)), jnp.float32)
    asked = params(500, **case)
    ids, is_sure = jax.jit(sample.draw_from_long_list, static_argnames="length")(logits, asked, length=100)
    expected = jax.jit(ops.draw)(*jax.lax.top_k(logits, 1000), asked)
    is_sure = np.asarray(is_sure)
    np.testing.assert_array_equal(np.asarray(ids)[is_sure], np.asarray(expected)[is_sure])
    assert least <= is_sure.mean() <= most


@once
def test_ties_with_the_last_of_a_long_list():
    """50 equal logits, a list of 20 and top-k 10: all 50 survive, so the list cannot tell; with 5 above them it can."""
    logits = np.full((200, 60), -9.0, np.float32)
    logits[:, :50] = 1.0
    _, is_sure = sample.draw_from_long_list(jnp.asarray(logits), params(200, top_k=10), length=20)
    assert not is_sure.any()
    logits[:, :5] = 3.0
    ids, is_sure = sample.draw_from_long_list(jnp.asarray(logits), params(200, top_k=5), length=20)
    assert is_sure.all() and set(ids.tolist()) == {0, 1, 2, 3, 4}


@once
def test_rows_that_need_all_in_order_beside_rows_that_do_not():
    """More words than the long list, and nearly flat: every row draws as if all had been in order."""
    logits = jnp.asarray(np.random.default_rng(4).normal(0, 0.1, (12, 6000)), jnp.float32)
    mixed = dataclasses.replace(params(12), top_k_R=jnp.array([0, 200] * 6), index_R=jnp.arange(5, 17))
    is_sure = jax.jit(sample.draw_from_long_list, static_argnames="length")(logits, mixed, length=4096)[1]
    assert is_sure[1::2].all() and 0 < is_sure[::2].sum() < 6
    drawn = jax.jit(ops.sample, static_argnames="short")(logits, mixed, short=False)
    np.testing.assert_array_equal(drawn, jax.jit(ops.draw)(*jax.lax.top_k(logits, 6000), mixed))


@once
def test_a_short_list_is_not_found_by_putting_all_in_order():
    """XLA makes a top_k of a sort, unless what follows hides the slice: see `_scaled` of ops/xla/sample.py."""
    logits = jax.ShapeDtypeStruct((2, 5000), jnp.float32)
    text = jax.jit(lambda x: ops.sample(x, params(2, top_k=64), short=True)).lower(logits).compile().as_text()
    assert "TopK" in text or jax.default_backend() != "cpu"
    assert "sort(" not in text or jax.default_backend() != "cpu"


def test_greedy_rows_beside_drawing_rows():
    logits = jnp.asarray(np.random.default_rng(6).normal(0, 1, (2, V)), jnp.float32)
    mixed = params(2)
    mixed = SampleParams(
        jnp.array([0.0, 1.0]), mixed.top_k_R, mixed.top_p_R, mixed.min_p_R, mixed.seed_R2, mixed.index_R
    )
    assert int(ops.sample(logits, mixed, short=False)[0]) == int(jnp.argmax(logits[0]))


def test_penalties_are_their_formulas():
    """Ids in any order; what is beyond the logits is padding and touches nothing."""
    logits = np.array([[2.0, -2.0, 1.0, 0.5], [1.0, 2.0, 3.0, -4.0]], np.float32)
    penalties = Penalties(
        repetition_R=jnp.array([1.25, 0.5]),
        presence_R=jnp.array([0.5, 1.0]),
        frequency_R=jnp.array([0.25, -1.0]),
        ids_RP=jnp.array([[2, 0, 3, 1, 4], [3, 2**30, 4, 5, 2**31 - 1]]),
        seen_RP=jnp.array([[True, True, False, True, True], [True] * 5]),
        count_RP=jnp.array([[1, 0, 0, 3, 7], [0, 9, 9, 9, 9]]),
        bias_RP=jnp.array([[10.0, 0.0, -1.0, 0.0, 5.0], [0.25, 9.0, 9.0, 9.0, 9.0]]),
    )
    expected = [
        [2.0 / 1.25, -2.0 * 1.25 - 0.75 - 0.5, 1.0 / 1.25 - 0.25 - 0.5 + 10.0, 0.5 - 1.0],
        [1.0, 2.0, 3.0, -4.0 * 0.5 + 0.25],
    ]
    np.testing.assert_allclose(ops.penalize(jnp.asarray(logits), penalties), expected, rtol=1e-6)


@pytest.mark.parametrize("format", ["int8", "int4-b32", "bf16", "fp32"])
def test_a_step_and_the_program_after_it_draw_the_same_token(format):
    """The step's fused head, and the logits as they are, over the formats of a head."""
    rng = np.random.default_rng(8)
    table = rng.normal(0, 0.3, (400, 64)).astype(np.float32)
    head = jnp.asarray(table, jnp.float32 if format == "fp32" else jnp.bfloat16)
    if format in ("int8", "int4-b32"):
        weight = quantize(table, format)
        head = PackedWeight(layout.pack(weight), format, weight.shape) if select.packs_weights() else weight
    fast = jax.jit(functools.partial(fast_choice, vocab=390))
    full = jax.jit(functools.partial(full_choice, vocab=390))
    for trial in range(25):
        asked = [
            SamplingParams(temperature=float(rng.choice([0.0, 0.8, 2.0])), top_k=int(rng.integers(1, 129)), seed=trial)
            for _ in range(4)
        ]
        samplers = [RowSampler(one, [], vocab=390) for one in asked]
        h = jnp.asarray(rng.normal(0, 1, (4, 64)), jnp.float32)
        ids, *_ = full(head, h, *full_arguments(samplers, [None] * 4, vocab=390))
        np.testing.assert_array_equal(fast(head, h, row_params(samplers)), ids)


def test_top_logprobs_are_log_softmax():
    logits = np.random.default_rng(7).normal(0, 2, (3, V)).astype(np.float32)
    chosen = np.array([0, 39, 5], np.int32)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    got, values, ids = ops.top_logprobs(jnp.asarray(logits), jnp.asarray(chosen), top=4)
    np.testing.assert_allclose(got, expected[np.arange(3), chosen], atol=1e-5)
    np.testing.assert_array_equal(ids, np.argsort(-wide, axis=-1)[:, :4])
    np.testing.assert_allclose(values, -np.sort(-expected, axis=-1)[:, :4], atol=1e-5)
