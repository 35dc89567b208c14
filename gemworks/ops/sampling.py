"""What a sampling op is given: per-row numbers, as arrays, so that one program serves every request."""

import equinox as eqx
import jax

# R rows, V vocabulary rows

# Candidates when every row has 0 < top_k <= this: top_k of 262,144 costs 1/20 of sorting them.
SHORT_LIST = 128


class SampleParams(eqx.Module):
    """Per-row numbers; fp32 but top_k (0: off), seed (two uint32 words) and index (answer tokens so far), int32."""

    temperature_R: jax.Array  # 0: greedy
    top_k_R: jax.Array
    top_p_R: jax.Array
    min_p_R: jax.Array
    seed_R2: jax.Array
    index_R: jax.Array


class Penalties(eqx.Module):
    """What the penalties count, per row. seen: in prompt or answer; count: times in the answer; bias: added last."""

    repetition_R: jax.Array
    presence_R: jax.Array
    frequency_R: jax.Array
    seen_RV: jax.Array  # bool
    count_RV: jax.Array  # int32
    bias_RV: jax.Array  # fp32
