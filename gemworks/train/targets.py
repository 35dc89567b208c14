"""What a student learns of a teacher's distribution p from N = 256 draws a token: three ways, of which one is default.

The student's loss is ln sum_v e^(z_v) - sum_i t_i z_i over its whole vocabulary, so it converges to E[t]. With n_i
draws of word i (with replacement):

    ht       t_i ~ p_i / (1 - (1 - p_i)^N), over the words drawn, made to sum to 1   (Horvitz and Thompson 1952)
    counts   t_i = n_i / N                                                           (arXiv 2503.16870)
    gemma3   t_i ~ p_i over the words drawn, made to sum to 1     what the Gemma 3 report's section 2.2 says, literally

ht divides by the chance of a word to be drawn at all, so E[t] = p but for the normalization; its variance is the
smallest of the three. counts is exact in the mean. gemma3 is not: with p ~ 1 / rank^1.2 over 262,144 words the words
rarer than 1 / N keep 0.22 of their mass, so a student loses most of its tail. It is here to be compared.

A drawn list has fixed length N: a word drawn n times is in it once with its target, and n - 1 times with 0.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

# C draws of a token, V vocabulary rows; ... any leading axes

Scheme = Literal["ht", "counts", "gemma3"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

NUM_DRAWS = 256


def draw(key: jax.Array, logits: jax.Array, num_draws: int = NUM_DRAWS) -> jax.Array:
    """Return num_draws words of softmax(logits [..., V]), with replacement: ids [..., C], ascending."""
    cumulative = jnp.cumsum(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=-1)
    # Below the last sum, which rounding leaves a little off 1.
    u = jax.random.uniform(key, (*logits.shape[:-1], num_draws)) * cumulative[..., -1:] * (1 - 2**-22)
    flat = [x.reshape(-1, x.shape[-1]) for x in (cumulative, jnp.sort(u, axis=-1))]
    ids = jax.vmap(lambda sums, u: jnp.searchsorted(sums, u, side="right"))(*flat)
    return jnp.minimum(ids, logits.shape[-1] - 1).astype(jnp.int32).reshape(u.shape)


def targets_of(ids: jax.Array, log_p: jax.Array, scheme: Scheme) -> jax.Array:
    """Return t [..., C] for ascending drawn ids and the teacher's ln p of each; t sums to 1 over a token's draws."""
    num_draws = ids.shape[-1]
    is_first = jnp.concatenate([jnp.ones_like(ids[..., :1], bool), ids[..., 1:] != ids[..., :-1]], axis=-1)
    if scheme == "counts":
        ends = jnp.searchsorted  # of equal neighbours: the place after the last
        flat = ids.reshape(-1, num_draws)
        last = jax.vmap(lambda row: ends(row, row, side="right"))(flat).reshape(ids.shape)
        return jnp.where(is_first, last - jnp.arange(num_draws), 0) / num_draws
    weight = jnp.exp(log_p)
    if scheme == "ht":
        # 1 - (1 - p)^N without cancellation: p = 1e-7 has (1 - p) rounded to 1 in fp32.
        missed = num_draws * jnp.log1p(-jnp.minimum(weight, 1 - 2**-24))
        weight = weight / jnp.maximum(-jnp.expm1(missed), 1e-30)
    weight = jnp.where(is_first, weight, 0)
    return weight / jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30)


def sampled_targets(
    key: jax.Array, logits: jax.Array, scheme: Scheme, num_draws: int = NUM_DRAWS
) -> tuple[jax.Array, jax.Array]:
    """Return (ids, targets), both [..., C], of a teacher's logits [..., V]."""
    ids = draw(key, logits, num_draws)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return ids, targets_of(ids, jnp.take_along_axis(log_p, ids, axis=-1), scheme)
