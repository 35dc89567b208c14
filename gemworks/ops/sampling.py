"""What a sampling op is given: per-row numbers, as arrays, so that one program serves every request."""

import equinox as eqx
import jax
import jax.numpy as jnp

from gemworks.ops.kv import Array

# R rows, V vocabulary rows, P penalized ids of a row with padding, W words of a mask

# Candidates when every row has 0 < top_k <= this: of 262,144 logits 128 take 0.4 ms, all in order 61 ms.
SHORT_LIST = 128


class SampleParams(eqx.Module):
    """Per-row numbers; fp32 but top_k (0: off), seed (two uint32 words) and index (answer tokens so far), int32."""

    temperature_R: Array  # 0: greedy
    top_k_R: Array
    top_p_R: Array
    min_p_R: Array
    seed_R2: Array
    index_R: Array


class Penalties(eqx.Module):
    """What the penalties count, per row, of the ids they concern: no id twice; those that no logits have are padding.

    seen: in prompt or answer; count: times in the answer; bias: added last.
    """

    repetition_R: Array
    presence_R: Array
    frequency_R: Array
    ids_RP: Array  # int32
    seen_RP: Array  # bool
    count_RP: Array  # int32
    bias_RP: Array  # fp32


def mask_words(vocab: int) -> int:
    """Return W, the uint32 words of a mask over `vocab` ids."""
    return -(-vocab // 32)


def allowed(mask_RW: jax.Array, vocab: int) -> jax.Array:
    """Return allowed_RV, bool, of masks in which id i is bit i % 32 of word i // 32."""
    bits_RWb = jnp.asarray(mask_RW)[:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    return bits_RWb.reshape(bits_RWb.shape[0], -1)[:, :vocab] == 1
