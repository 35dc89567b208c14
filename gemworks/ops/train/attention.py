"""Attention over whole rows, without a cache: every window in blocks, everything else a part of the queries at a time.

A local layer of window W cuts a row into blocks of W tokens: a query sees keys of its own block and the one before.

    window 4, blocks    | 0 1 2 3 | 4 5 6 7 | 8 9 ...
    query 6 sees             3      4 5 6                 two blocks of keys, W + W, whatever the length of the row

Where the row's tokens are divided over devices (parallel/), the block before is all a device needs of its neighbour.

A global layer's scores are [B, N, QUERIES, T] at a time, and are computed again for the gradient. The queries of a turn
are every (T / QUERIES)-th of the row: the axis of the loop is then not the one that devices divide.
"""

import jax
import jax.numpy as jnp

from gemworks.ops.kv import RowsPlan
from gemworks.ops.train.product import product
from gemworks.ops.xla import attention as cached

# B rows, T tokens a row, n blocks or turns, c queries and s keys of one, N query heads, K kv heads, G = N / K,
# H head width

QUERIES = 512  # of a turn; scores of 1B at T = 32,768: [1, 4, 512, 32768] fp32, 256 MiB


def attention(q_BTNH, k_BTKH, v_BTKH, plan, kv, *, scale: float):
    """Return (out_BTNH, kv). Head n reads kv head n // (N / K). Plans with a cache are ops/xla's business."""
    if not isinstance(plan, RowsPlan):
        return cached.attention(q_BTNH, k_BTKH, v_BTKH, plan, kv, scale=scale)
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    q_BTKGH = (q_BTNH * scale).reshape(B, T, K, N // K, H).astype(plan.dtype)
    k_BTKH, v_BTKH = k_BTKH.astype(plan.dtype), v_BTKH.astype(plan.dtype)
    if plan.window is not None and plan.window < T:
        out = _windowed(q_BTKGH, k_BTKH, v_BTKH, plan, plan.window)
    else:
        out = _whole(q_BTKGH, k_BTKH, v_BTKH, plan)
    return out.reshape(B, T, N, H), kv


def _windowed(q_BTKGH, k_BTKH, v_BTKH, plan: RowsPlan, W: int) -> jax.Array:
    """Return out_BTKGH where no query looks further back than W - 1 tokens."""
    B, T = q_BTKGH.shape[:2]

    def blocks(x, fill=0):
        x = jnp.pad(x, ((0, 0), (0, -T % W), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
        return x.reshape(B, -1, W, *x.shape[2:])

    def with_block_before(x, fill=0):
        first = jnp.full_like(x[:, :1], fill)
        return jnp.concatenate([jnp.concatenate([first, x[:, :-1]], axis=1), x], axis=2)

    position, segment = blocks(plan.position_BT), blocks(plan.segment_BT, -1)
    mask = _visible(position, segment, with_block_before(position), with_block_before(segment, -2), W)
    out = _attend("bn", blocks(q_BTKGH), with_block_before(blocks(k_BTKH)), with_block_before(blocks(v_BTKH)), mask)
    return out.reshape(B, -1, *out.shape[3:])[:, :T]


def _whole(q_BTKGH, k_BTKH, v_BTKH, plan: RowsPlan) -> jax.Array:
    """Return out_BTKGH where a query may look back to the start of its text."""
    B, T = q_BTKGH.shape[:2]
    position_BT, segment_BT = jnp.asarray(plan.position_BT), jnp.asarray(plan.segment_BT)

    def turn(q, position, segment):
        mask = _visible(position, segment, position_BT, segment_BT, plan.window)
        return _attend("b", q, k_BTKH, v_BTKH, mask)

    if T <= 2 * QUERIES or T % QUERIES:
        return turn(q_BTKGH, position_BT, segment_BT)
    strided = [
        jnp.moveaxis(x.reshape(B, QUERIES, T // QUERIES, *x.shape[2:]), 2, 0)
        for x in (q_BTKGH, position_BT, segment_BT)
    ]
    out = jax.lax.map(lambda one: jax.checkpoint(turn)(*one), tuple(strided))
    return jnp.moveaxis(out, 0, 2).reshape(q_BTKGH.shape)


def _visible(q_position, q_segment, k_position, k_segment, window: int | None) -> jax.Array:
    """mask[..., c, s]: the key is of the query's text, not after it, and within the window if there is one."""
    distance = q_position[..., :, None] - k_position[..., None, :]
    mask = (distance >= 0) & (q_segment[..., :, None] == k_segment[..., None, :])
    return mask if window is None else mask & (distance < window)


def _attend(lead: str, q, k, v, mask) -> jax.Array:
    """Masked softmax attention, softmax in fp32: q [lead, c, K, G, H], k and v [lead, s, K, H], mask [lead, c, s]."""
    scores = product(f"{lead}ckgh,{lead}skh->{lead}kgcs", q, k)
    mask = mask[:, None, None] if lead == "b" else mask[:, :, None, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, cached.MASKED), axis=-1)
    return product(f"{lead}kgcs,{lead}skh->{lead}ckgh", weights.astype(v.dtype), v)
