"""What a sampling op is given: per-row numbers, as arrays, so that one program serves every request."""

import equinox as eqx

from gemworks.ops.kv import Array

# R rows, V vocabulary rows

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
    """What the penalties count, per row. seen: in prompt or answer; count: times in the answer; bias: added last."""

    repetition_R: Array
    presence_R: Array
    frequency_R: Array
    seen_RV: Array  # bool
    count_RV: Array  # int32
    bias_RV: Array  # fp32
