"""Attention on every backend against a loop over queries in float64: rings, pages and no cache.

The loop knows positions and a dictionary of stored keys; it has no slots, pages, blocks or masks to get wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import ops
from gemworks.ops import select
from gemworks.ops.kv import FullPlan, PagePlan, RingPlan, new_page_kv, new_ring_kv

N, K, H = 4, 2, 8
SCALE = 0.3


@pytest.fixture(params=select.available(), autouse=True)
def backend(request):
    with select.force("*", request.param):
        yield request.param


def attend_one(q_NH, keys, values, visible) -> np.ndarray:
    """Return out_NH of one query over the positions it may see."""
    out = np.zeros((N, H))
    for n in range(N):
        k_SH = np.stack([keys[p][n // (N // K)] for p in visible])
        v_SH = np.stack([values[p][n // (N // K)] for p in visible])
        scores = k_SH @ q_NH[n] * SCALE
        weights = np.exp(scores - scores.max())
        out[n] = weights / weights.sum() @ v_SH
    return out


def draw(rng, T: int):
    return (rng.normal(0, 1, (T, heads, H)).astype(np.float32) for heads in (N, K, K))


def visible(position: int, window: int | None) -> range:
    return range(0 if window is None else max(0, position - window + 1), position + 1)


# rows: per row a list of chunk lengths, one a step; all rows step together, padded to the longest of the step.
STEPS = {
    "prefill": [[5]],
    "prefill, then decode past the wrap": [[3], [1], [1], [1], [1], [1], [1]],
    "chunk longer than the window": [[11], [1], [9], [2]],
    "chunk of exactly the window": [[4], [4], [4]],
    "one row idle at the end": [[7, 2], [1, 6], [3, 1], [1, 1]],
    "three ages": [[1, 9, 4], [2, 2, 2], [13, 1, 5]],
}


@pytest.mark.parametrize("window", [1, 2, 4, 5])
@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_ring(steps, window, spare):
    R = len(steps[0])
    rings = np.arange(R)[::-1].astype(np.int32).copy()
    kv = new_ring_kv(R, window + spare, K, H, jnp.float32)

    def plan(start, count):
        return RingPlan(jnp.asarray(start), jnp.asarray(count), jnp.asarray(rings), window)

    run(steps, kv, plan, window)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_pages(steps, page_size):
    R, M = len(steps[0]), -(-24 // page_size)
    order = np.random.default_rng(3).permutation(np.arange(1, R * M + 1))
    table = order.reshape(R, M).astype(np.int32)
    kv = new_page_kv(R * M + 1, page_size, K, H, jnp.float32)
    run(steps, kv, lambda start, count: PagePlan(jnp.asarray(start), jnp.asarray(count), jnp.asarray(table)), None)


def run(steps, kv, plan, window) -> None:
    """Step all rows through the op and through the loop and compare every real token."""
    rng = np.random.default_rng(0)
    R = len(steps[0])
    keys, values = [{} for _ in range(R)], [{} for _ in range(R)]
    start = np.zeros(R, np.int32)
    attention = jax.jit(ops.attention, static_argnames="scale")
    for count in steps:
        C = max(count)
        q, k, v = draw(rng, R * C)
        out, kv = attention(q, k, v, plan(start, np.array(count, np.int32)), kv, scale=SCALE)
        for r in range(R):
            for c in range(count[r]):
                p, t = int(start[r]) + c, r * C + c
                keys[r][p], values[r][p] = k[t].astype(np.float64), v[t].astype(np.float64)
                expected = attend_one(q[t], keys[r], values[r], visible(p, window))
                np.testing.assert_allclose(out[t], expected, atol=2e-6, err_msg=f"row {r}, position {p}")
        start = start + np.array(count, np.int32)


def test_pages_longer_than_one_block_of_keys():
    """Past 512 keys the page loop takes a second turn and rescales what it has."""
    T, B = 700, 16
    q, k, v = draw(np.random.default_rng(1), T)
    k[600:] *= 6  # the maximum moves in the second block
    table = jnp.arange(1, T // B + 2)[None].astype(jnp.int32)
    plan = PagePlan(jnp.zeros(1, jnp.int32), jnp.full(1, T, jnp.int32), table)
    kv = new_page_kv(table.size + 1, B, K, H, jnp.float32)
    out, _ = ops.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), plan, kv, scale=SCALE)
    for t in (0, 511, 512, 513, 699):
        expected = attend_one(q[t], k.astype(np.float64), v.astype(np.float64), visible(t, None))
        np.testing.assert_allclose(out[t], expected, atol=3e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_packed_segments_do_not_see_each_other(window):
    segment = np.array([0, 0, 0, 0, 1, 2, 2, 2, 2, 2], np.int32)
    position = np.array([0, 1, 2, 3, 0, 0, 1, 2, 3, 4], np.int32)
    q, k, v = draw(np.random.default_rng(2), 10)
    plan = FullPlan(jnp.asarray(position), jnp.asarray(segment), window)
    out, kv = ops.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), plan, None, scale=SCALE)
    assert kv is None
    for t in range(10):
        first = t - position[t]
        seen = [first + p for p in visible(int(position[t]), window)]
        np.testing.assert_allclose(out[t], attend_one(q[t], k, v, seen), atol=2e-6)


def test_padding_row_gives_numbers():
    """An idle row (count 0) is computed and thrown away; it must not make NaN, which would trip a NaN check."""
    q, k, v = draw(np.random.default_rng(4), 2)
    kv = new_page_kv(2, 4, K, H, jnp.float32)
    plan = PagePlan(jnp.zeros(2, jnp.int32), jnp.array([1, 0], jnp.int32), jnp.array([[1], [0]], jnp.int32))
    out, stored = ops.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), plan, kv, scale=SCALE)
    assert np.isfinite(np.asarray(out)).all()
    assert np.asarray(stored.k_PBKH[1, 0]).any() and not np.asarray(stored.k_PBKH[1, 1:]).any()
