"""Grouped-query attention with QK-norm and RoPE: the part of a block that touches the cache (spec 4.4)."""

import equinox as eqx
import jax

from gemworks import ops
from gemworks.model.layers import Linear, RMSNorm
from gemworks.ops.kv import AttentionPlan, LayerKV

# T tokens, D model width, N query heads, K kv heads, H head width, E = N * H


class Attention(eqx.Module):
    """Project to heads, norm those of q and k, turn them, attend; `o` projects back in the block's tail."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm
    head_dim: int = eqx.field(static=True)
    query_scale: float = eqx.field(static=True)

    def __call__(
        self,
        x_TD: jax.Array,
        pre_norm: RMSNorm,
        rope: tuple[jax.Array, jax.Array],
        plan: AttentionPlan,
        kv: LayerKV | None,
    ) -> tuple[jax.Array, LayerKV | None]:
        """Return (out_TE, kv with the chunk stored). `rope` is (cos_TJ, sin_TJ) of this layer's kind."""
        weights = self.q.weight, self.k.weight, self.v.weight
        q_TNH, k_TKH, v_TKH = ops.qkv(
            x_TD, pre_norm.scale, *weights, self.q_norm.scale, self.k_norm.scale, *rope, eps=pre_norm.eps
        )
        out_TNH, kv = ops.attention(q_TNH, k_TKH, v_TKH, plan, kv, scale=self.query_scale)
        return out_TNH.reshape(*x_TD.shape[:-1], -1), kv
