"""Drawing on every backend: the distribution is what the filters define, and penalties are their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import ops
from gemworks.ops import select
from gemworks.ops.sampling import Penalties, SampleParams

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


def test_greedy_rows_beside_drawing_rows():
    logits = jnp.asarray(np.random.default_rng(6).normal(0, 1, (2, V)), jnp.float32)
    mixed = params(2)
    mixed = SampleParams(
        jnp.array([0.0, 1.0]), mixed.top_k_R, mixed.top_p_R, mixed.min_p_R, mixed.seed_R2, mixed.index_R
    )
    assert int(ops.sample(logits, mixed, short=False)[0]) == int(jnp.argmax(logits[0]))


def test_penalties_are_their_formulas():
    logits = np.array([[2.0, -2.0, 1.0, 0.5]], np.float32)
    penalties = Penalties(
        repetition_R=jnp.array([1.25]),
        presence_R=jnp.array([0.5]),
        frequency_R=jnp.array([0.25]),
        seen_RV=jnp.array([[True, True, True, False]]),
        count_RV=jnp.array([[0, 3, 1, 0]]),
        bias_RV=jnp.array([[0.0, 0.0, 10.0, -1.0]]),
    )
    expected = [2.0 / 1.25, -2.0 * 1.25 - 0.75 - 0.5, 1.0 / 1.25 - 0.25 - 0.5 + 10.0, 0.5 - 1.0]
    np.testing.assert_allclose(ops.penalize(jnp.asarray(logits), penalties)[0], expected, rtol=1e-6)


def test_top_logprobs_are_log_softmax():
    logits = np.random.default_rng(7).normal(0, 2, (3, V)).astype(np.float32)
    chosen = np.array([0, 39, 5], np.int32)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    got, values, ids = ops.top_logprobs(jnp.asarray(logits), jnp.asarray(chosen), top=4)
    np.testing.assert_allclose(got, expected[np.arange(3), chosen], atol=1e-5)
    np.testing.assert_array_equal(ids, np.argsort(-wide, axis=-1)[:, :4])
    np.testing.assert_allclose(values, -np.sort(-expected, axis=-1)[:, :4], atol=1e-5)
