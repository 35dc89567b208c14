"""Choosing the next token from a row of logits, in fp32 and in transformers' order (spec 13).

penalties -> bias -> mask -> temperature -> top-k -> top-p -> min-p -> one draw by inverse transform. A draw uses one
uniform number made from (seed, index of the answer token) and the candidates sorted by logit, so that a seed gives the
same text alone and in any batch.
"""

import jax
import jax.numpy as jnp

from gemworks.ops.sampling import SHORT_LIST, Penalties, SampleParams
from gemworks.ops.weight import Weight
from gemworks.ops.xla.basic import linear

# R rows, V vocabulary rows, P penalized ids of a row, Q candidates kept, best first

# Candidates that are looked at before all are put in order: of 262,144 logits they take 2.5 ms a row, all of them 90.
_LONG_LIST = 4096


def penalize(logits_RV: jax.Array, penalties: Penalties) -> jax.Array:
    """Return the logits after repetition (Keskar et al. 2019), presence and frequency penalties and the bias."""
    rows_R1 = jnp.arange(logits_RV.shape[0])[:, None]
    at_RP = logits_RV.at[rows_R1, penalties.ids_RP]
    values_RP = at_RP.get(mode="fill", fill_value=0.0)
    factor_RP = jnp.where(penalties.seen_RP, penalties.repetition_R[:, None], 1.0)
    values_RP = jnp.where(values_RP > 0, values_RP / factor_RP, values_RP * factor_RP)
    values_RP -= penalties.frequency_R[:, None] * penalties.count_RP
    values_RP -= penalties.presence_R[:, None] * (penalties.count_RP > 0)
    return at_RP.set(values_RP + penalties.bias_RP, mode="drop", unique_indices=True)


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
    if short or V <= _LONG_LIST:
        return draw(*jax.lax.top_k(logits_RV, min(SHORT_LIST, V) if short else V), params)
    ids_R, is_sure_R = draw_from_long_list(logits_RV, params, length=_LONG_LIST)

    def from_all() -> jax.Array:
        return jnp.where(is_sure_R, ids_R, draw(*jax.lax.top_k(logits_RV, V), params))

    return jax.lax.cond(jnp.all(is_sure_R), lambda: ids_R, from_all)


def draw(values_RQ: jax.Array, ids_RQ: jax.Array, params: SampleParams) -> jax.Array:
    """Return the drawn id of every row, int32, from its largest logits, best first; Q covers every row's top_k."""
    probs_RQ = candidates(values_RQ, params)
    return _draw_at(_uniform_of(params) * jnp.sum(probs_RQ, axis=-1), probs_RQ, ids_RQ)


def draw_from_long_list(logits_RV: jax.Array, params: SampleParams, *, length: int) -> tuple[jax.Array, jax.Array]:
    """Return (ids_R, is_sure_R): what `draw` finds among all logits in order, where the `length` largest tell.

    They tell where the filters keep none of the others, and where no filter is on and the point drawn falls among them.
    """
    values_RQ, ids_RQ = jax.lax.top_k(logits_RV, length)
    greedy_R, top_k_R = params.temperature_R == 0.0, jnp.asarray(params.top_k_R)
    scaled_RV = _scaled(logits_RV, params)
    probs_RQ = candidates(values_RQ, params, total_R=jnp.sum(jnp.exp(scaled_RV), axis=-1))
    # A value equal to the k-th survives top-k wherever it stands.
    listed_R = (top_k_R > 0) & (top_k_R < length) & (_kth(values_RQ, params)[:, 0] > jnp.min(values_RQ, axis=-1))
    ends_R = (probs_RQ[:, -1] == 0.0) & (top_k_R == 0)
    unfiltered_R = (top_k_R == 0) & (jnp.asarray(params.top_p_R) >= 1.0) & (jnp.asarray(params.min_p_R) == 0.0)
    mass_R = jnp.sum(probs_RQ, axis=-1)
    point_R = _uniform_of(params) * jnp.where(unfiltered_R & ~greedy_R, 1.0, mass_R)
    is_sure_R = greedy_R | listed_R | ends_R | (unfiltered_R & (point_R < mass_R))
    return _draw_at(point_R, probs_RQ, ids_RQ), is_sure_R


def candidates(values_RQ: jax.Array, params: SampleParams, total_R: jax.Array | None = None) -> jax.Array:
    """Return probs_RQ of logits that are sorted, best first: 0 where a filter dropped one, and not normalised again.

    A greedy row keeps its first candidate only. total_R, where the logits are not all: sum e^((logit - largest) /
    temperature) over all, for rows without top-k.
    """
    rank_Q = jnp.arange(values_RQ.shape[1])
    scaled_RQ = _scaled(values_RQ, params)
    # Ties with the k-th value stay, as in transformers, which drops what is less than the k-th.
    is_open_R1 = (params.top_k_R == 0)[:, None]
    keep_RQ = is_open_R1 | (scaled_RQ >= _kth(scaled_RQ, params))
    probs_RQ = jax.nn.softmax(jnp.where(keep_RQ, scaled_RQ, -jnp.inf), axis=-1)
    if total_R is not None:
        probs_RQ = jnp.where(is_open_R1, jnp.exp(scaled_RQ) / total_R[:, None], probs_RQ)
    # top-p keeps the smallest set whose probability exceeds p: a token stays if those before it have less than p.
    before_RQ = jnp.cumsum(probs_RQ, axis=-1) - probs_RQ
    keep_RQ &= (params.top_p_R >= 1.0)[:, None] | (before_RQ < params.top_p_R[:, None])
    keep_RQ &= probs_RQ >= params.min_p_R[:, None] * probs_RQ[:, :1]
    keep_RQ = jnp.where((params.temperature_R == 0.0)[:, None], rank_Q == 0, keep_RQ | (rank_Q == 0))
    return jnp.where(keep_RQ, probs_RQ, 0.0)


def top_logprobs(logits_RV: jax.Array, chosen_R: jax.Array, *, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (logprob_R of the chosen ids, top_values_Rn, top_ids_Rn), natural log, from the logits as they are."""
    log_total_R = jax.nn.logsumexp(logits_RV, axis=-1)
    chosen_logprob_R = jnp.take_along_axis(logits_RV, chosen_R[:, None], axis=1)[:, 0] - log_total_R
    values_Rn, ids_Rn = jax.lax.top_k(logits_RV, max(top, 1))
    return chosen_logprob_R, values_Rn - log_total_R[:, None], ids_Rn


def _scaled(values_RQ: jax.Array, params: SampleParams) -> jax.Array:
    """Return (logit - largest) / temperature. Divided by a tiny temperature, logits themselves overflow.

    By max and not [:, :1]: XLA would join that with the slice that makes a sort a top_k, and then sort all 262,144; 88
    ms instead of 0.5.
    """
    temperature_R1 = jnp.where(params.temperature_R == 0.0, 1.0, params.temperature_R)[:, None]
    return (values_RQ - jnp.max(values_RQ, axis=1, keepdims=True)) / temperature_R1


def _kth(values_RQ: jax.Array, params: SampleParams) -> jax.Array:
    """Return the k-th largest value of each row, [R, 1]; the first where top-k is off."""
    kth_R1 = jnp.clip(params.top_k_R - 1, 0, values_RQ.shape[1] - 1)[:, None]
    return jnp.take_along_axis(values_RQ, kth_R1, axis=1)


def _draw_at(point_R: jax.Array, probs_RQ: jax.Array, ids_RQ: jax.Array) -> jax.Array:
    """Return the id at which the probabilities, added up in order, pass the point."""
    drawn_R = jnp.sum(jnp.cumsum(probs_RQ, axis=-1) <= point_R[:, None], axis=-1)
    # Rounding may put the point on the last edge: stay inside what was kept.
    last_R = jnp.max(jnp.where(probs_RQ > 0, jnp.arange(probs_RQ.shape[1]), 0), axis=-1)
    choice_R = jnp.minimum(drawn_R, last_R)
    return jnp.take_along_axis(ids_RQ, choice_R[:, None], axis=1)[:, 0].astype(jnp.int32)


def _uniform_of(params: SampleParams) -> jax.Array:
    """Return the uniform number of each row, in [0, 1): a function of its seed and index."""
    return jax.vmap(_uniform)(jnp.asarray(params.seed_R2), jnp.asarray(params.index_R))


def _uniform(seed_2: jax.Array, index: jax.Array) -> jax.Array:
    key = jax.random.wrap_key_data(seed_2, impl="threefry2x32")
    return jax.random.uniform(jax.random.fold_in(key, index))
