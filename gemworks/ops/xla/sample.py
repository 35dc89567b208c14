"""Choosing the next token from a row of logits, in fp32 and in transformers' order (spec 13).

penalties -> bias -> temperature -> top-k -> top-p -> min-p -> one draw by inverse transform. A draw uses one uniform
number made from (seed, index of the answer token) and the candidates sorted by logit, so that a seed gives the same
text alone, in any batch and on any path through this file.
"""

import jax
import jax.numpy as jnp

from gemworks.ops.sampling import SHORT_LIST, Penalties, SampleParams
from gemworks.ops.weight import Weight
from gemworks.ops.xla.basic import linear

# R rows, V vocabulary rows, Q candidates kept, best first


def penalize(logits_RV: jax.Array, penalties: Penalties) -> jax.Array:
    """Return the logits after repetition (Keskar et al. 2019), presence and frequency penalties and the bias."""
    factor_RV = jnp.where(penalties.seen_RV, penalties.repetition_R[:, None], 1.0)
    logits_RV = jnp.where(logits_RV > 0, logits_RV / factor_RV, logits_RV * factor_RV)
    logits_RV -= penalties.frequency_R[:, None] * penalties.count_RV
    logits_RV -= penalties.presence_R[:, None] * (penalties.count_RV > 0)
    return logits_RV + penalties.bias_RV


def head_top(
    h_RD: jax.Array, weight_VD: Weight, *, vocab: int, top: int, with_total: bool, product=linear
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (values_RQ, ids_RQ, log_total_R): the Q = min(top, vocab) largest of the first `vocab` logits, best first.

    log_total is ln sum e^logit over the first `vocab`, or zeros where `with_total` is false. Equal logits: lower id
    first. `product` multiplies with a matrix.
    """
    logits_RV = product(h_RD, weight_VD)[:, :vocab]
    if top == 1:  # one pass, where top_k would sort
        ids_RQ = jnp.argmax(logits_RV, axis=-1, keepdims=True).astype(jnp.int32)
        values_RQ = jnp.take_along_axis(logits_RV, ids_RQ, axis=1)
    else:
        values_RQ, ids_RQ = jax.lax.top_k(logits_RV, min(top, vocab))
    total_R = jax.nn.logsumexp(logits_RV, axis=-1) if with_total else jnp.zeros(logits_RV.shape[0], jnp.float32)
    return values_RQ, ids_RQ, total_R


def sample(logits_RV: jax.Array, params: SampleParams, *, short: bool) -> jax.Array:
    """Return the drawn id of every row, int32. `short` promises 0 < top_k <= SHORT_LIST in every row that draws."""
    V = logits_RV.shape[1]
    return draw(*jax.lax.top_k(logits_RV, min(SHORT_LIST, V) if short else V), params)


def draw(values_RQ: jax.Array, ids_RQ: jax.Array, params: SampleParams) -> jax.Array:
    """Return the drawn id of every row, int32, from its largest logits, best first; Q covers every row's top_k."""
    probs_RQ = candidates(values_RQ, params)
    cumulative_RQ = jnp.cumsum(probs_RQ, axis=-1)
    point_R = jax.vmap(_uniform)(jnp.asarray(params.seed_R2), jnp.asarray(params.index_R)) * cumulative_RQ[:, -1]
    drawn_R = jnp.sum(cumulative_RQ <= point_R[:, None], axis=-1)
    # Rounding may put the point on the last edge: stay inside what was kept.
    last_R = jnp.max(jnp.where(probs_RQ > 0, jnp.arange(probs_RQ.shape[1]), 0), axis=-1)
    choice_R = jnp.minimum(drawn_R, last_R)
    return jnp.take_along_axis(ids_RQ, choice_R[:, None], axis=1)[:, 0].astype(jnp.int32)


def candidates(values_RQ: jax.Array, params: SampleParams) -> jax.Array:
    """Return probs_RQ of logits that are sorted, best first: 0 where a filter dropped one, and not normalised again.

    A greedy row keeps its first candidate only.
    """
    greedy_R = params.temperature_R == 0.0
    values_RQ = values_RQ / jnp.where(greedy_R, 1.0, params.temperature_R)[:, None]
    rank_Q = jnp.arange(values_RQ.shape[1])
    # Ties with the k-th value stay, as in transformers, which drops what is less than the k-th.
    kth_R1 = jnp.clip(params.top_k_R - 1, 0, rank_Q.size - 1)[:, None]
    keep_RQ = (params.top_k_R == 0)[:, None] | (values_RQ >= jnp.take_along_axis(values_RQ, kth_R1, axis=1))
    probs_RQ = jax.nn.softmax(jnp.where(keep_RQ, values_RQ, -jnp.inf), axis=-1)
    # top-p keeps the smallest set whose probability exceeds p: a token stays if those before it have less than p.
    before_RQ = jnp.cumsum(probs_RQ, axis=-1) - probs_RQ
    keep_RQ &= (params.top_p_R >= 1.0)[:, None] | (before_RQ < params.top_p_R[:, None])
    keep_RQ &= probs_RQ >= params.min_p_R[:, None] * probs_RQ[:, :1]
    keep_RQ = jnp.where(greedy_R[:, None], rank_Q == 0, keep_RQ | (rank_Q == 0))
    return jnp.where(keep_RQ, probs_RQ, 0.0)


def top_logprobs(logits_RV: jax.Array, chosen_R: jax.Array, *, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (logprob_R of the chosen ids, top_values_Rn, top_ids_Rn), natural log, from the logits as they are."""
    log_total_R = jax.nn.logsumexp(logits_RV, axis=-1)
    chosen_logprob_R = jnp.take_along_axis(logits_RV, chosen_R[:, None], axis=1)[:, 0] - log_total_R
    values_Rn, ids_Rn = jax.lax.top_k(logits_RV, max(top, 1))
    return chosen_logprob_R, values_Rn - log_total_R[:, None], ids_Rn


def _uniform(seed_2: jax.Array, index: jax.Array) -> jax.Array:
    key = jax.random.wrap_key_data(seed_2, impl="threefry2x32")
    return jax.random.uniform(jax.random.fold_in(key, index))
