"""Image spans on every backend: attention against a dense mask in numpy, and a model in chunks against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunked_model import hidden_by_chunks, last_seen, soft_tokens
from small_models import random_ids, random_model, small_config

from gemworks import ops
from gemworks.model.gemma3 import full_batch
from gemworks.ops import select
from gemworks.ops.kv import FullPlan, PagePlan, PartsPlan, RingPlan, new_page_kv, new_ring_kv

N, K, H = 4, 2, 16
SCALE = 0.3

# spans (first, one after the last), chunks that end outside of all of them
CASES = {
    "in the middle": ([(3, 8)], [12, 1, 1]),
    "first": ([(0, 6)], [6, 5]),
    "last, to the end of the text": ([(7, 14)], [5, 9]),
    "two in a row": ([(2, 7), (7, 12)], [7, 5, 4]),
    "two in one chunk": ([(2, 6), (8, 13)], [15, 2]),
    "chunks begin and end at them": ([(4, 9), (11, 16)], [4, 5, 2, 5, 3]),
    "one token": ([(5, 6)], [5, 1, 4]),
    "no span in later chunks": ([(1, 5)], [5, 6, 1, 1]),
}


@pytest.fixture(params=select.available(), autouse=True)
def backend(request):
    with select.force("*", request.param):
        yield request.param


def dense_mask(length: int, spans, window: int | None) -> np.ndarray:
    """mask[q, k] of the specification, 5.3: window and (causal or of one span)."""
    mask = np.zeros((length, length), bool)
    for q in range(length):
        for k in range(length):
            together = any(start <= q < end and start <= k < end for start, end in spans)
            mask[q, k] = (k <= q or together) and (window is None or k > q - window)
    return mask


def dense_attention(q_TNH, k_TKH, v_TKH, mask_TS) -> np.ndarray:
    q, k, v = (x.astype(np.float64) for x in (q_TNH, k_TKH, v_TKH))
    k, v = (np.repeat(x, N // K, axis=1) for x in (k, v))
    scores = np.where(mask_TS, np.einsum("tnh,snh->nts", q, k) * SCALE, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), v)


def draw(T: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1, (T, heads, H)).astype(np.float32) for heads in (N, K, K)]


@pytest.mark.parametrize("kind", ["pages", 2, 5, 9])
@pytest.mark.parametrize("case", CASES)
def test_attention_is_that_of_the_dense_mask(case, kind):
    """Two rows of one step, of which one has no image; text may say its own position, as in row 0, or 0."""
    spans, chunks = CASES[case]
    T = sum(chunks)
    window = None if kind == "pages" else kind
    texts = [(draw(T, 0), dense_mask(T, spans, window)), (draw(T, 1), dense_mask(T, [], window))]
    expected = [dense_attention(*qkv, mask) for qkv, mask in texts]
    see_RT = np.stack([last_seen(T, spans), np.zeros(T, np.int32)])
    pools = new_page_kv(13, 4, K, H, jnp.float32) if window is None else new_ring_kv(2, window, K, H, jnp.float32)
    table = np.random.default_rng(2).permutation(np.arange(1, 13)).reshape(2, 6).astype(np.int32)
    # A function of its own: jax keeps traces by function, also those of another backend.
    attention, start = jax.jit(lambda *args: ops.attention(*args, scale=SCALE)), 0
    C = max(chunks) + 3  # padding columns
    for count in chunks:
        at = np.full(2, start, np.int32), np.full(2, count, np.int32)
        see_RC = np.zeros((2, C), np.int32)
        see_RC[:, :count] = see_RT[:, start : start + count]
        plan = PagePlan(*at, table, see_RC) if window is None else RingPlan(*at, np.arange(2), window, see_RC)

        def columns(i, start=start, count=count):
            padded = np.full((2, C, *texts[0][0][i].shape[1:]), 50.0, np.float32)  # would be seen if it were
            for r in range(2):
                padded[r, :count] = texts[r][0][i][start : start + count]
            return padded.reshape(2 * C, *padded.shape[2:])

        out, pools = attention(*(columns(i) for i in range(3)), plan, pools)
        out = np.asarray(out).reshape(2, C, N, H)
        assert np.isfinite(out).all()
        for r in range(2):
            np.testing.assert_allclose(out[r, :count], expected[r][start : start + count], atol=3e-6)
        start += count


@pytest.mark.parametrize("window", [None, 3])
def test_full_attention_is_that_of_the_dense_mask(window):
    spans = [(2, 9), (10, 13)]
    q, k, v = draw(17)
    plan = FullPlan(jnp.arange(17), jnp.zeros(17, jnp.int32), window, jnp.asarray(last_seen(17, spans)))
    out, _ = ops.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), plan, None, scale=SCALE)
    np.testing.assert_allclose(out, dense_attention(q, k, v, dense_mask(17, spans, window)), atol=3e-6)


def test_a_span_of_one_part_leaves_the_other_part_alone():
    """A step of decode rows and a chunk with an image: each part is what it is without the other."""
    qkv = draw(12)
    qkv = [jnp.asarray(x) for x in qkv]
    one = np.ones(1, np.int32)
    decode = RingPlan(0 * one, one, 0 * one, 4)
    image = RingPlan(0 * one, 11 * one, one, 4, np.where((last := last_seen(11, [(2, 8)])) > 0, last, 0)[None])
    kv = new_ring_kv(2, 4, K, H, jnp.float32)
    both, kv_both = ops.attention(*qkv, PartsPlan((decode, image), (1, 11)), kv, scale=SCALE)
    first, kv_first = ops.attention(*(x[:1] for x in qkv), decode, kv, scale=SCALE)
    second, kv_second = ops.attention(*(x[1:] for x in qkv), image, kv_first, scale=SCALE)
    np.testing.assert_array_equal(both, np.concatenate([first, second]))
    np.testing.assert_array_equal(kv_both.k_SWKH, kv_second.k_SWKH)


@pytest.mark.parametrize(
    ("case", "window"), [("in the middle", 8), ("two in a row", 3), ("chunks begin and end at them", 3)]
)
def test_chunks_of_a_model_are_the_whole_text(case, window):
    """Hidden states by chunks over rings and pages, some windows smaller than a span, against one uncached pass."""
    spans, chunks = CASES[case]
    config = small_config(window=window)
    model, ids = random_model(config), random_ids(config, sum(chunks))
    count = sum(end - start for start, end in spans)
    rows_SD = np.random.default_rng(5).normal(0, 1, (count, config.model_dim)).astype(np.float32)
    see_T = last_seen(len(ids), spans)
    batch = full_batch(
        jnp.asarray(ids, jnp.int32), config, see_T=jnp.asarray(see_T), soft=soft_tokens(len(ids), spans, rows_SD)
    )
    whole = np.asarray(jax.jit(lambda model, batch: model(batch)[0])(model, batch))
    np.testing.assert_allclose(
        hidden_by_chunks(model, ids, chunks, spans=spans, rows_SD=rows_SD, columns=16), whole, atol=3e-5
    )


def test_soft_rows_take_their_tokens_places_unscaled():
    config = small_config()
    model = random_model(config)
    ids = jnp.asarray(random_ids(config, 6), jnp.int32)
    rows_SD = np.random.default_rng(1).normal(0, 1, (4, config.model_dim)).astype(np.float32)
    table = np.asarray(model.embed(ids))
    got = np.asarray(soft_tokens(6, [(1, 3), (4, 5)], rows_SD[:3]).put(jnp.asarray(table)))
    np.testing.assert_array_equal(got, np.stack([table[0], rows_SD[0], rows_SD[1], table[3], rows_SD[2], table[5]]))


def test_a_batch_without_spans_has_no_trace_of_them():
    """The arrays of a text step are ids, positions and two plans of two: no rows, no index and no mask of an image."""
    assert len(jax.tree.leaves(full_batch(np.arange(4, dtype=np.int32), small_config()))) == 6
