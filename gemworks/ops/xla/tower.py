"""A layer of the vision tower in plain jax.numpy: read this to know what the kernels of csrc/tower.inl compute.

    x = x + o(attention(norm(x)))           every patch sees every patch; biases everywhere
    x = x + down(gelu_tanh(up(norm(x))))

Norms are ordinary LayerNorms: the weight multiplies as it is, not as 1 + w.

Memory of attention: the scores of a layer would be 16 x 4,096 x 4,096 fp32 = 1.07 GB. Queries are taken QUERY_BLOCK at
a time, and softmax needs no running maximum, as a block sees all keys at once.
"""

import jax
import jax.numpy as jnp

from gemworks.ops.kv import Array
from gemworks.ops.tower import Biased, Normed, TowerLayer
from gemworks.ops.xla.basic import linear

# P patches, D model width, F feed-forward width, N heads, H head width, Q queries of a block, S blocks

# Queries that attend at once. Scores of a block are [16, 256, 4096] fp32 = 67 MB at the real shape.
QUERY_BLOCK = 256


def layer_norm(x: jax.Array, norm: Normed, *, eps: float) -> jax.Array:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in fp32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * norm.weight + norm.bias


def attend_all(q_NPH: Array, k_NPH: Array, v_NPH: Array, *, scale: float, exact: bool = True) -> jax.Array:
    """Return out_NPH of unmasked attention, QUERY_BLOCK queries at a time; scores and softmax in fp32, exact or not."""
    del exact
    q_NPH, k_NPH, v_NPH = (jnp.asarray(x, jnp.float32) for x in (q_NPH, k_NPH, v_NPH))
    P = q_NPH.shape[1]
    size = min(QUERY_BLOCK, P)

    def block(start):
        q_NQH = jax.lax.dynamic_slice_in_dim(q_NPH, start, size, axis=1)
        weights = jax.nn.softmax(_einsum("nqh,nph->nqp", q_NQH * scale, k_NPH), axis=-1)
        return _einsum("nqp,nph->nqh", weights, v_NPH)

    # The last block begins early where P is no multiple of the size, and repeats some queries.
    starts = jnp.minimum(jnp.arange(-(-P // size)) * size, P - size)
    out_SNQH = jax.lax.map(block, starts)
    index_P = jnp.arange(P)
    turn_P = index_P // size
    return jnp.moveaxis(out_SNQH[turn_P, :, index_P - starts[turn_P]], 0, 1)


def tower_layer(
    x_PD: jax.Array, weights: TowerLayer, *, heads: int, eps: float, product=linear, attend=attend_all
) -> jax.Array:
    """Return x_PD after one layer. `product` multiplies with a matrix, `attend` is attention."""
    P, D = x_PD.shape

    def biased(x: jax.Array, one: Biased) -> jax.Array:
        return product(x, one.weight) + one.bias

    h_PD = layer_norm(x_PD, weights.attn_norm, eps=eps)
    q_NPH, k_NPH, v_NPH = (
        jnp.moveaxis(biased(h_PD, one).reshape(P, heads, -1), 1, 0) for one in (weights.q, weights.k, weights.v)
    )
    out_NPH = attend(q_NPH, k_NPH, v_NPH, scale=(D // heads) ** -0.5)
    x_PD = x_PD + biased(jnp.moveaxis(out_NPH, 0, 1).reshape(P, D), weights.o)
    h_PD = layer_norm(x_PD, weights.ffw_norm, eps=eps)
    return x_PD + biased(jax.nn.gelu(biased(h_PD, weights.up), approximate=True), weights.down)


def _einsum(spec: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *operands, precision="highest", preferred_element_type=jnp.float32)
