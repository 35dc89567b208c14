"""Attention over rings, pages or the chunk alone, in plain jax.numpy with fp32 scores and softmax.

The order differs between the two stores, and matters:
  - a ring is written AFTER the chunk attends: the chunk's first query still needs the W - 1 positions before it,
    whose slots the chunk's last tokens take over;
  - pages are written BEFORE, because nothing in them is overwritten, and reading them back needs no second source.
Either way a key is rounded as it is stored before anybody reads it.

Ring of 4 slots, window 4, stored 0..5, chunk of 2 (positions 6, 7):

    slot       0 1 2 3
    holds      4 5 2 3     query 6 sees 3 4 5 6: slot 3 is still needed
    after      4 5 6 7     when 7 takes slot 3
"""

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.ops.kv import Array, FullPlan, LayerKV, PageKV, PagePlan, RingKV, RingPlan

# R rows, C columns, T = R * C tokens, N query heads, K kv heads, G = N / K, H head width, S keys, M pages of a row

MASKED = -1e30  # finite, so that a row without any key (padding) gives numbers and not NaN

# Keys a turn of the page loop reads. Scores of a turn are [R, N, C, PAGE_BLOCK] fp32: 32 MiB for 27B at C = 512.
PAGE_BLOCK = 512


def attention(q_TNH, k_TKH, v_TKH, plan, kv: LayerKV | None, *, scale: float) -> tuple[jax.Array, LayerKV | None]:
    """Return (out_TNH, kv with the chunk stored). Head n reads kv head n // (N / K). All is fp32 but the store."""
    if isinstance(plan, FullPlan):
        return attend_full(q_TNH, k_TKH, v_TKH, plan, scale=scale), kv
    if isinstance(plan, RingPlan):
        assert isinstance(kv, RingKV)
        out_TNH = attend_ring(q_TNH, k_TKH, v_TKH, plan, kv, scale=scale)
        return out_TNH, store_ring(k_TKH, v_TKH, plan, kv)
    assert isinstance(plan, PagePlan) and isinstance(kv, PageKV)
    kv = store_pages(k_TKH, v_TKH, plan, kv)
    return attend_pages(q_TNH, plan, kv, scale=scale), kv


def attend_full(q_TNH, k_TKH, v_TKH, plan: FullPlan, *, scale: float) -> jax.Array:
    """Return out_TNH where the chunk's own keys are all there is."""
    last_T = plan.position_T if plan.see_T is None else jnp.maximum(plan.see_T, plan.position_T)
    mask_TS = plan.position_T[None, :] <= last_T[:, None]
    mask_TS &= plan.segment_T[:, None] == plan.segment_T[None, :]
    if plan.window is not None:
        mask_TS &= plan.position_T[:, None] - plan.position_T[None, :] < plan.window
    out = _attend(_rows(q_TNH, 1), _rows(k_TKH, 1), _rows(v_TKH, 1), mask_TS[None], scale=scale)
    return out.reshape(q_TNH.shape)


def attend_ring(q_TNH, k_TKH, v_TKH, plan: RingPlan, kv: RingKV, *, scale: float) -> jax.Array:
    """Return out_TNH over what the rings hold and the chunk itself. The rings must not hold the chunk yet.

    The chunk's own keys and values are rounded as the ring stores them, so that a result does not depend on which of
    them came in the same chunk.
    """
    R = plan.start_R.shape[0]
    q_RCNH, k_RCKH, v_RCKH = _rows(q_TNH, R), _rows(k_TKH, R), _rows(v_TKH, R)
    q_pos_RC = _positions(plan, q_RCNH.shape[1])
    # The youngest stored position p <= start - 1 with p % W == slot; negative where the slot is still empty.
    last_R1 = plan.start_R[:, None] - 1
    slot_pos_RW = last_R1 - jnp.mod(last_R1 - jnp.arange(kv.slots), kv.slots)
    k_pos_RS = jnp.concatenate([slot_pos_RW, q_pos_RC], axis=1)
    distance_RCS = q_pos_RC[:, :, None] - k_pos_RS[:, None, :]
    mask_RCS = (distance_RCS < plan.window) & (k_pos_RS >= 0)[:, None, :]
    mask_RCS &= k_pos_RS[:, None, :] <= _last_seen(plan, q_pos_RC)[:, :, None]
    own_k, own_v = _as_stored(k_RCKH, kv.k_SWKH), _as_stored(v_RCKH, kv.v_SWKH)
    k_RSKH = jnp.concatenate([_take(kv.k_SWKH, kv.k_scale_SWK, plan.ring_R), own_k], axis=1)
    v_RSKH = jnp.concatenate([_take(kv.v_SWKH, kv.v_scale_SWK, plan.ring_R), own_v], axis=1)
    return _attend(q_RCNH, k_RSKH, v_RSKH, mask_RCS, scale=scale).reshape(q_TNH.shape)


def store_ring(k_TKH, v_TKH, plan: RingPlan, kv: RingKV) -> RingKV:
    """Return the rings with the chunk's last `slots` real tokens written at position % slots."""
    R, W = plan.start_R.shape[0], kv.slots
    C = k_TKH.shape[0] // R
    pos_RC = _positions(plan, C)
    end_R1 = (plan.start_R + plan.count_R)[:, None]
    # Two tokens of one chunk may share a slot when C > W; a scatter keeps an arbitrary one, so the older is dropped.
    keep_RC = (pos_RC < end_R1) & (pos_RC >= end_R1 - W)
    slot_RC = jnp.where(keep_RC, pos_RC % W, W)
    at = (plan.ring_R[:, None], slot_RC)
    k_SWKH, k_scale_SWK = _put(kv.k_SWKH, kv.k_scale_SWK, at, _rows(k_TKH, R), mode="drop")
    v_SWKH, v_scale_SWK = _put(kv.v_SWKH, kv.v_scale_SWK, at, _rows(v_TKH, R), mode="drop")
    return RingKV(k_SWKH, v_SWKH, k_scale_SWK, v_scale_SWK)


def store_pages(k_TKH, v_TKH, plan: PagePlan, kv: PageKV) -> PageKV:
    """Return the pages with the chunk's real tokens written through each row's table."""
    R, B = plan.start_R.shape[0], kv.page_size
    C = k_TKH.shape[0] // R
    pos_RC = _positions(plan, C)
    page_RC = jnp.take_along_axis(plan.table_RM, pos_RC // B, axis=1, mode="clip")
    real_RC = jnp.arange(C) < plan.count_R[:, None]
    at = (jnp.where(real_RC, page_RC, 0), pos_RC % B)  # padding goes to page 0, which nobody reads
    # All indices are in bounds: a scatter that may drop keeps the old pool beside the new one.
    k_PBKH, k_scale_PBK = _put(kv.k_PBKH, kv.k_scale_PBK, at, _rows(k_TKH, R), mode="promise_in_bounds")
    v_PBKH, v_scale_PBK = _put(kv.v_PBKH, kv.v_scale_PBK, at, _rows(v_TKH, R), mode="promise_in_bounds")
    return PageKV(k_PBKH, v_PBKH, k_scale_PBK, v_scale_PBK)


def attend_pages(q_TNH, plan: PagePlan, kv: PageKV, *, scale: float) -> jax.Array:
    """Return out_TNH over the pages, which hold the chunk already.

    Online softmax over blocks of PAGE_BLOCK keys (Milakov and Gimelshein 2018, arXiv 1805.02867): the loop runs as
    far as the longest row, so the cost follows the text and not the table, and nothing is ever [C, context].
    """
    R, B = plan.start_R.shape[0], kv.page_size
    pages_a_turn = max(1, PAGE_BLOCK // B)
    S = pages_a_turn * B
    q_RCNH = _rows(q_TNH, R)
    _, C, N, H = q_RCNH.shape
    K = kv.k_PBKH.shape[2]
    q_RKGCH = _grouped(q_RCNH, K) * scale
    last_RC = _last_seen(plan, _positions(plan, C))
    M = plan.table_RM.shape[1]
    table_RM = jnp.pad(plan.table_RM, ((0, 0), (0, -M % pages_a_turn)))

    def turn(i, carry):
        best, total, out = carry
        pages_Rm = jax.lax.dynamic_slice_in_dim(table_RM, i * pages_a_turn, pages_a_turn, axis=1)
        k_RSKH = _take(kv.k_PBKH, kv.k_scale_PBK, pages_Rm).reshape(R, S, K, H)
        v_RSKH = _take(kv.v_PBKH, kv.v_scale_PBK, pages_Rm).reshape(R, S, K, H)
        k_pos_S = i * S + jnp.arange(S)
        mask_RCS = k_pos_S <= last_RC[:, :, None]
        scores = _einsum("rkgch,rskh->rkgcs", q_RKGCH, k_RSKH)
        scores = jnp.where(mask_RCS[:, None, None], scores, MASKED)
        new_best = jnp.maximum(best, scores.max(axis=-1))
        weights = jnp.exp(scores - new_best[..., None])
        shrink = jnp.exp(best - new_best)
        out = out * shrink[..., None] + _einsum("rkgcs,rskh->rkgch", weights, v_RSKH)
        return new_best, total * shrink + weights.sum(axis=-1), out

    empty = jnp.zeros(q_RKGCH.shape[:-1], jnp.float32)
    longest = jnp.max(plan.start_R + plan.count_R)
    _, total, out = jax.lax.fori_loop(0, (longest + S - 1) // S, turn, (empty + MASKED, empty, jnp.zeros_like(q_RKGCH)))
    out = out / jnp.maximum(total, 1e-30)[..., None]  # a padding row has total 0
    return jnp.moveaxis(out, 3, 1).reshape(R * C, N, H)


def _attend(q_RCNH, k_RSKH, v_RSKH, mask_RCS, *, scale: float) -> jax.Array:
    """Plain masked softmax attention; returns out_RCNH."""
    R, C, N, H = q_RCNH.shape
    scores = _einsum("rkgch,rskh->rkgcs", _grouped(q_RCNH, k_RSKH.shape[2]) * scale, k_RSKH)
    scores = jnp.where(mask_RCS[:, None, None], scores, MASKED)
    out = _einsum("rkgcs,rskh->rkgch", jax.nn.softmax(scores, axis=-1), v_RSKH)
    return jnp.moveaxis(out, 3, 1).reshape(R, C, N, H)


def _positions(plan: RingPlan | PagePlan, C: int) -> jax.Array:
    """Position of every column; those of padding columns run on and are masked by their reader."""
    return jnp.asarray(plan.start_R)[:, None] + jnp.arange(C)


def _last_seen(plan: RingPlan | PagePlan, q_pos_RC: jax.Array) -> jax.Array:
    """The last position each query may see: its own, or the end of its span."""
    return q_pos_RC if plan.see_RC is None else jnp.maximum(plan.see_RC, q_pos_RC)


def _rows(x_TXH: jax.Array, R: int) -> jax.Array:
    return x_TXH.reshape(R, -1, *x_TXH.shape[1:])


def _grouped(q_RCNH: jax.Array, K: int) -> jax.Array:
    """Return q_RKGCH: the N / K consecutive query heads that share a kv head side by side."""
    R, C, N, H = q_RCNH.shape
    return jnp.moveaxis(q_RCNH.reshape(R, C, K, N // K, H), 1, 3)


def _take(pool: jax.Array, scale: jax.Array | None, index: Array) -> jax.Array:
    """Return pool[index] in fp32."""
    block = pool[index]
    if scale is not None:
        return block.astype(jnp.float32) * scale[index][..., None]
    if block.dtype == jnp.uint16:
        block = jax.lax.bitcast_convert_type(block, jnp.bfloat16)
    return block.astype(jnp.float32)


def _put(pool: jax.Array, scale: jax.Array | None, at: tuple, values: jax.Array, *, mode: str):
    """Return (pool, scale) with the values stored at the indices, rounded as the pool stores them."""
    if scale is not None:
        values, scales = quantize(values)
        scale = scale.at[at].set(scales, mode=mode)
    elif pool.dtype == jnp.uint16:
        values = jax.lax.bitcast_convert_type(values.astype(jnp.bfloat16), jnp.uint16)
    return pool.at[at].set(values.astype(pool.dtype), mode=mode), scale


def _as_stored(values: jax.Array, pool: jax.Array) -> jax.Array:
    """Return fp32 values as they would be read back from a pool."""
    if pool.dtype == jnp.int8:
        codes, scales = quantize(values)
        return codes.astype(jnp.float32) * scales[..., None]
    if pool.dtype == jnp.uint16:
        # Not two casts: XLA may leave a pair of them out (xla_allow_excess_precision).
        return jax.lax.reduce_precision(values.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    return values.astype(jnp.float32)


def quantize(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (codes, scales) of values [..., H]: round(x * 127 / max|x|) in int8, and max|x| / 127."""
    largest = jnp.abs(values).max(axis=-1)
    largest = jnp.where(largest > 1e-30, largest, 0)  # below, the inverse would overflow: stored as zeros
    inverse = jnp.where(largest > 0, 127 / largest, 0)
    codes = jnp.round(values * inverse[..., None]).astype(jnp.int8)
    return codes, largest * np.float32(1 / 127)


def _einsum(spec: str, *operands) -> jax.Array:
    return jnp.einsum(spec, *operands, precision="highest", preferred_element_type=jnp.float32)
