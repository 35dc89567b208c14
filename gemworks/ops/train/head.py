"""What every loss reads of the head, a part of the vocabulary at a time: logits [B, T, V] never exist.

    log_total = ln sum_v e^(h . w_v)          chosen_k = h . w_(id_k)

Cross-entropy is log_total - chosen; distillation chooses up to 256 ids a token; a policy's log-probability is
chosen - log_total. One row of 4,096 tokens has 4.3 GB of fp32 logits at 262,144 words; a part is [B, T, V / parts], is
made with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) and again for the gradient.

Part i has the words i, parts + i, 2 parts + i ...: where devices divide the vocabulary, each has some of every part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemworks.ops.gradients import with_gradient
from gemworks.ops.train.product import product
from gemworks.ops.train.stored import Fixed

# B rows, T tokens, D model width, V vocabulary rows, v rows of a part, C chosen ids of a token

WORDS_AT_ONCE = 8192


def token_logits(
    h_BTD: jax.Array, head_VD: jax.Array | Fixed, ids_BTC: jax.Array, *, words_at_once: int = WORDS_AT_ONCE
) -> tuple[jax.Array, jax.Array]:
    """Return (log_total_BT, chosen_BTC), fp32. h is rounded to the head's dtype. Ids must be words of the head.

    A head that is Fixed has no gradient, and the product for it, a third of the backward pass's work, is not made.
    """
    parts = num_parts(head_VD.shape[0], words_at_once)
    return _token_logits(parts, h_BTD.astype(head_VD.dtype), head_VD, ids_BTC)


def num_parts(vocab: int, words_at_once: int) -> int:
    """The smallest divisor of `vocab` that makes parts of at most `words_at_once` words."""
    return next(n for n in range(1, vocab + 1) if vocab % n == 0 and vocab // n <= words_at_once)


class _Part(NamedTuple):
    """One part's rows of the head, its logits, which chosen ids are in it, and where."""

    rows_vD: jax.Array
    logits_BTv: jax.Array
    is_here_BTC: jax.Array
    at_BTC: jax.Array


def _part(i, parts: int, h_BTD, head_VD, ids_BTC) -> _Part:
    if isinstance(head_VD, Fixed):  # of one device, so the words of a part may lie side by side
        rows_vD = head_VD.part(i, parts)
        words = rows_vD.shape[0]
        return _Part(rows_vD, product("btd,vd->btv", h_BTD, rows_vD), ids_BTC // words == i, ids_BTC % words)
    rows_vD = jax.lax.dynamic_index_in_dim(_split(head_VD, parts), i, axis=1, keepdims=False)
    logits = product("btd,vd->btv", h_BTD, rows_vD)
    return _Part(rows_vD, logits, ids_BTC % parts == i, ids_BTC // parts)


def _split(head_VD: jax.Array, parts: int) -> jax.Array:
    return head_VD.reshape(-1, parts, head_VD.shape[1])


def _plain(parts: int, h_BTD, head_VD, ids_BTC):
    def turn(carry, i):
        best_BT, total_BT, chosen_BTC = carry
        part = _part(i, parts, h_BTD, head_VD, ids_BTC)
        new_best = jnp.maximum(best_BT, part.logits_BTv.max(axis=-1))
        total_BT = total_BT * jnp.exp(best_BT - new_best) + jnp.exp(part.logits_BTv - new_best[..., None]).sum(axis=-1)
        chosen_BTC = chosen_BTC + jnp.where(part.is_here_BTC, _take(part.logits_BTv, part.at_BTC), 0)
        return (new_best, total_BT, chosen_BTC), None

    zero_BT = jnp.zeros(h_BTD.shape[:-1], jnp.float32)
    start = zero_BT - jnp.inf, zero_BT, jnp.zeros(ids_BTC.shape, jnp.float32)
    (best_BT, total_BT, chosen_BTC), _ = jax.lax.scan(turn, start, jnp.arange(parts))
    return best_BT + jnp.log(total_BT), chosen_BTC


def _forward(parts: int, h_BTD, head_VD, ids_BTC):
    log_total_BT, chosen_BTC = _plain(parts, h_BTD, head_VD, ids_BTC)
    return (log_total_BT, chosen_BTC), (h_BTD, head_VD, ids_BTC, log_total_BT)


def _backward(parts: int, kept, cotangents):
    h_BTD, head_VD, ids_BTC, log_total_BT = kept
    d_total_BT, d_chosen_BTC = cotangents

    def turn(carry, i):
        d_h_BTD, d_head = carry
        part = _part(i, parts, h_BTD, head_VD, ids_BTC)
        d_logits = jnp.exp(part.logits_BTv - log_total_BT[..., None]) * d_total_BT[..., None]
        d_logits = _add(d_logits, part.at_BTC, jnp.where(part.is_here_BTC, d_chosen_BTC, 0)).astype(head_VD.dtype)
        d_h_BTD = d_h_BTD + product("btv,vd->btd", d_logits, part.rows_vD)
        if d_head is None:
            return (d_h_BTD, None), None
        d_rows = product("btv,btd->vd", d_logits, h_BTD).astype(head_VD.dtype)
        return (d_h_BTD, jax.lax.dynamic_update_index_in_dim(d_head, d_rows, i, axis=1)), None

    zero_head = None if isinstance(head_VD, Fixed) else jnp.zeros_like(_split(head_VD, parts))
    start = jnp.zeros(h_BTD.shape, jnp.float32), zero_head
    (d_h_BTD, d_head), _ = jax.lax.scan(turn, start, jnp.arange(parts))
    return d_h_BTD.astype(h_BTD.dtype), None if d_head is None else d_head.reshape(head_VD.shape), None


_token_logits = with_gradient(_plain, _forward, _backward)


def _take(x_BTv: jax.Array, at_BTC: jax.Array) -> jax.Array:
    """x at the indices. One of each token by comparing, which needs nothing of other devices' words but a sum."""
    if at_BTC.shape[-1] == 1:
        return jnp.where(_is_at(x_BTv, at_BTC), x_BTv, 0).sum(axis=-1, keepdims=True)
    return jnp.take_along_axis(x_BTv, at_BTC, axis=-1)


def _add(x_BTv: jax.Array, at_BTC: jax.Array, values_BTC: jax.Array) -> jax.Array:
    """x with the values added at the indices, those of equal indices together."""
    if at_BTC.shape[-1] == 1:
        return x_BTv + jnp.where(_is_at(x_BTv, at_BTC), values_BTC, 0)
    return jax.vmap(jax.vmap(lambda x_v, at_C, values_C: x_v.at[at_C].add(values_C)))(x_BTv, at_BTC, values_BTC)


def _is_at(x_BTv: jax.Array, at_BT1: jax.Array) -> jax.Array:
    return jnp.arange(x_BTv.shape[-1]) == at_BT1
