"""A layer around its attention, in terms of the basic ops: read this to know what the two block kernels compute.

    qkv           q, k, v = W norm(x);  q, k = rope(norm(q)), rope(norm(k))         v is neither normed nor turned
    block_tail    x = x + norm(o attn);  x = x + norm(down(gelu(gate h) * (up h))) with h = norm(x)

Each norm has its own gain and multiplies by 1 + gain.
"""

import jax

from gemworks.ops.weight import Weight
from gemworks.ops.xla.basic import geglu, linear, rms_norm, rope

# T tokens, D model width, N query heads, K kv heads, H head width, J = H / 2, E = N * H


def qkv(
    x_TD, gain_D, q: Weight, k: Weight, v: Weight, q_gain_H, k_gain_H, cos_TJ, sin_TJ, *, eps: float, product=linear
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (q_TNH, k_TKH, v_TKH) of the normed rows. `product` multiplies with a matrix."""
    h_TD = rms_norm(x_TD, gain_D, eps=eps)
    heads = (*x_TD.shape[:-1], -1, q_gain_H.shape[0])
    q_TNH = rope(rms_norm(product(h_TD, q).reshape(heads), q_gain_H, eps=eps), cos_TJ, sin_TJ)
    k_TKH = rope(rms_norm(product(h_TD, k).reshape(heads), k_gain_H, eps=eps), cos_TJ, sin_TJ)
    return q_TNH, k_TKH, product(h_TD, v).reshape(heads)


def block_tail(
    x_TD,
    attn_TE,
    attn_gain_D,
    ffw_gain_D,
    ffw_post_gain_D,
    o: Weight,
    gate: Weight,
    up: Weight,
    down: Weight,
    *,
    eps: float,
    product=linear,
) -> jax.Array:
    """Return x_TD after the attention's output projection and the feed-forward branch."""
    x_TD = x_TD + rms_norm(product(attn_TE, o), attn_gain_D, eps=eps)
    h_TD = rms_norm(x_TD, ffw_gain_D, eps=eps)
    return x_TD + rms_norm(product(geglu(product(h_TD, gate), product(h_TD, up)), down), ffw_post_gain_D, eps=eps)


def head_norm(x_TD: jax.Array, gain_D: jax.Array, head_VD: Weight, *, eps: float) -> jax.Array:
    """Return the rows normed for the head, which only tells a backend in what arithmetic they will be read."""
    del head_VD
    return rms_norm(x_TD, gain_D, eps=eps)
