"""Attention over rings and pages by kernel (csrc/attention*.inl); everything else is ops/xla's.

The chunk is stored in the same call, into the pools' own memory: the operands are aliased to the results, so a step
that donates its cache copies nothing (tests/backend/test_attention_cpu.py reads the compiled program).

Not here: FullPlan (training and scoring), image spans, head widths no multiple of 16, groups of more than 16 heads.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.ops.kv import FullPlan, LayerKV, RingKV, RingPlan
from gemworks.ops.xla import attention as xla

# T tokens, N query heads, K kv heads, H head width

LANES = 16
MAX_GROUP = 16
STORED = (np.dtype(np.float32), np.dtype(np.uint16), np.dtype(np.int8))


def attention(q_TNH, k_TKH, v_TKH, plan, kv: LayerKV | None, *, scale: float) -> tuple[jax.Array, LayerKV | None]:
    """Return (out_TNH, kv with the chunk stored); columns past a row's count come out as zeros."""
    if kv is None or isinstance(plan, FullPlan) or plan.see_RC is not None or not serves(q_TNH.shape, k_TKH.shape, kv):
        return xla.attention(q_TNH, k_TKH, v_TKH, plan, kv, scale=scale)
    pools, structure = jax.tree.flatten(kv)
    if isinstance(plan, RingPlan):
        target, where, window = "gemworks_attend_ring", plan.ring_R, {"window": np.int64(plan.window)}
    else:
        target, where, window = "gemworks_attend_pages", plan.table_RM, {}
    floats = [jnp.asarray(x, jnp.float32) for x in (q_TNH, k_TKH, v_TKH)]
    plan_arrays = [jnp.asarray(x, jnp.int32) for x in (plan.start_R, plan.count_R, where)]
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (floats[0], *pools)]
    in_place = {6 + i: 1 + i for i in range(len(pools))}
    call = jax.ffi.ffi_call(target, results, input_output_aliases=in_place)
    out_TNH, *pools = call(*floats, *plan_arrays, *pools, scale=np.float32(scale), **window)
    return out_TNH, jax.tree.unflatten(structure, pools)


def serves(q_shape: tuple[int, ...], k_shape: tuple[int, ...], kv: LayerKV) -> bool:
    """Whether there is a kernel for these heads and this pool."""
    (_, N, H), K = q_shape, k_shape[1]
    pool = kv.k_SWKH if isinstance(kv, RingKV) else kv.k_PBKH
    return H % LANES == 0 and N % K == 0 and N // K <= MAX_GROUP and pool.dtype in STORED
