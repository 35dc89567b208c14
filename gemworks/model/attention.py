"""Grouped-query attention with QK-norm and RoPE: the part of a block that touches the cache (spec 4.4)."""

import equinox as eqx
import jax

from gemworks import ops
from gemworks.model.layers import Linear, RMSNorm
from gemworks.ops.kv import AttentionPlan, LayerKV

# T tokens, D model width, N query heads, K kv heads, H head width


class Attention(eqx.Module):
    """Norm the heads of q and k, turn them, attend, project back. v is neither normed nor turned."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm
    head_dim: int = eqx.field(static=True)
    query_scale: float = eqx.field(static=True)

    def __call__(
        self, x_TD: jax.Array, rope: tuple[jax.Array, jax.Array], plan: AttentionPlan, kv: LayerKV | None
    ) -> tuple[jax.Array, LayerKV | None]:
        """Return (y_TD, kv with the chunk stored). `rope` is (cos_TJ, sin_TJ) of this layer's kind."""
        heads = (x_TD.shape[0], -1, self.head_dim)
        q_TNH = ops.rope(self.q_norm(self.q(x_TD).reshape(heads)), *rope)
        k_TKH = ops.rope(self.k_norm(self.k(x_TD).reshape(heads)), *rope)
        v_TKH = self.v(x_TD).reshape(heads)
        out_TNH, kv = ops.attention(q_TNH, k_TKH, v_TKH, plan, kv, scale=self.query_scale)
        return self.o(out_TNH.reshape(x_TD.shape[0], -1)), kv
