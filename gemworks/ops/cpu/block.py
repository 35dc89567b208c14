"""A layer around its attention in two kernels (csrc/block.inl), where all its matrices are packed.

And the norm before the head.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.ops.cpu.linear import fits, linear, matrices
from gemworks.ops.weight import PackedWeight, Weight
from gemworks.ops.xla import block as xla_block

# T tokens, D model width, N query heads, K kv heads, H head width, J = H / 2, E = N * H

LANES = 16


def qkv(
    x_TD, gain_D, q: Weight, k: Weight, v: Weight, q_gain_H, k_gain_H, cos_TJ, sin_TJ, *, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (q_TNH, k_TKH, v_TKH) of the normed rows."""
    weights, H = _packed(q, k, v), q_gain_H.shape[0]
    if weights is None or H % 32:
        return xla_block.qkv(x_TD, gain_D, q, k, v, q_gain_H, k_gain_H, cos_TJ, sin_TJ, eps=eps, product=linear)
    T = x_TD.shape[0]
    out = tuple(jax.ShapeDtypeStruct((T, w.shape[0] // H, H), jnp.float32) for w in weights)
    operands = (x_TD, gain_D, *(w.data for w in weights), q_gain_H, k_gain_H, cos_TJ, sin_TJ)
    call = jax.ffi.ffi_call("gemworks_qkv", out)
    q_TNH, k_TKH, v_TKH = call(*operands, matrices=matrices(*weights), eps=np.float32(eps))
    return q_TNH, k_TKH, v_TKH


def block_tail(
    x_TD, attn_TE, attn_gain_D, ffw_gain_D, ffw_post_gain_D, o: Weight, gate: Weight, up: Weight, down: Weight, *, eps
) -> jax.Array:
    """Return x_TD after the attention's output projection and the feed-forward branch."""
    weights = _packed(o, gate, up, down)
    if weights is None:
        return xla_block.block_tail(
            x_TD, attn_TE, attn_gain_D, ffw_gain_D, ffw_post_gain_D, o, gate, up, down, eps=eps, product=linear
        )
    operands = (x_TD, attn_TE, attn_gain_D, ffw_gain_D, ffw_post_gain_D, *(w.data for w in weights))
    call = jax.ffi.ffi_call("gemworks_block_tail", jax.ShapeDtypeStruct(x_TD.shape, jnp.float32))
    return call(*operands, matrices=matrices(*weights), eps=np.float32(eps))


def head_norm(x_TD: jax.Array, gain_D: jax.Array, head_VD: Weight, *, eps: float) -> jax.Array:
    """Return the rows normed for the head; before a packed one a row has the same bits beside any number of others."""
    if not isinstance(head_VD, PackedWeight) or gain_D.shape[0] % LANES or x_TD.shape[0] == 0:
        return xla_block.head_norm(x_TD, gain_D, head_VD, eps=eps)
    call = jax.ffi.ffi_call("gemworks_rms_norm", jax.ShapeDtypeStruct(x_TD.shape, jnp.float32))
    return call(jnp.asarray(x_TD, jnp.float32), jnp.asarray(gain_D, jnp.float32), eps=np.float32(eps))


def _packed(*weights: Weight) -> list[PackedWeight] | None:
    """Return the weights where the kernels take all of them, else None."""
    taken = [w for w in weights if isinstance(w, PackedWeight) and fits(w) and w.shape[0] % 32 == 0]
    return taken if len(taken) == len(weights) else None
