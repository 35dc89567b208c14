"""Norm, matrix product, RoPE, GELU and embedding in plain jax.numpy: the specification of every kernel.

Activations between ops are fp32 whatever the weights are. A product rounds its activations to the weights' dtype and
accumulates in fp32 (docs/numerics.md), which is at least as exact as the published bf16 evaluation at every point.
"""

import jax
import jax.numpy as jnp

from gemworks.ops.kv import Array
from gemworks.ops.weight import PackedWeight, QuantWeight, Weight
from gemworks.ops.xla.quant import dequantize, take_rows, unpack

# T tokens, D input width, F output width, N heads, H head width, V vocabulary rows, P parts of a matrix

_DEQUANTIZED_AT_ONCE = 1 << 25  # weights: 128 MiB in fp32


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """Return x / rms(x) * (1 + scale) over the last axis, in fp32. `scale` is zero-centred."""
    x = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * inverse_rms * (1.0 + scale.astype(jnp.float32))


def linear(x_TD: jax.Array, weight_FD: Weight) -> jax.Array:
    """Return y_TF = x_TD @ weight_FD.T in fp32, the activations rounded to the weights' dtype (quantized: fp32)."""
    T = x_TD.shape[0]
    if not isinstance(weight_FD, jax.Array):
        return _quantized_linear(x_TD, weight_FD)
    x_TD = x_TD.astype(weight_FD.dtype)
    if T == 1 and weight_FD.dtype == jnp.bfloat16:
        # XLA on CPU has no bf16 matrix-vector product: it first converts the whole matrix to fp32 in a temporary. With
        # two rows it calls its bf16 matrix product: 159 -> 18 ms for [65536, 1152], no temporary (jaxlib 0.10.2).
        x_TD = jnp.concatenate([x_TD, jnp.zeros_like(x_TD)])
    y_TF = jax.lax.dot_general(
        x_TD, weight_FD, (((1,), (1,)), ((), ())), precision="highest", preferred_element_type=jnp.float32
    )
    return y_TF[:T]


def _quantized_linear(x_TD: jax.Array, weight: QuantWeight | PackedWeight) -> jax.Array:
    """Return y_TF with the matrix dequantized in fp32, a part of its rows at a time."""
    row_major = unpack(weight) if isinstance(weight, PackedWeight) else weight
    F, D = row_major.shape
    # A whole head dequantized is 1.2 GB for 1B.
    parts = next((n for n in range(1, F + 1) if F % n == 0 and n * _DEQUANTIZED_AT_ONCE >= F * D), F)
    by_row = row_major.scales.shape[:1] == (F,) and row_major.format != "sfp8"

    def product(part):
        codes, scales = part if by_row else (part, row_major.scales)
        rows = dequantize(QuantWeight(codes, scales, row_major.format, (F // parts, D)))
        return jnp.einsum("td,fd->tf", x_TD, rows, precision="highest", preferred_element_type=jnp.float32)

    codes = jnp.asarray(row_major.codes)
    if parts == 1:
        return product((codes, row_major.scales) if by_row else codes)
    split = [a.reshape(parts, F // parts, *a.shape[1:]) for a in (codes, jnp.asarray(row_major.scales))[: 1 + by_row]]
    y_PTf = jax.lax.map(product, tuple(split) if by_row else split[0])
    return jnp.moveaxis(y_PTf, 0, 1).reshape(x_TD.shape[0], F)


def embed(ids_T: Array, weight_VD: Weight, *, scale: float) -> jax.Array:
    """Return x_TD = weight[ids] * scale in fp32, rounded to the weights' dtype as in training. Ids are clipped to V.

    A quantized table gives code * scale of the row, times `scale`, and is not rounded.
    """
    if not isinstance(weight_VD, jax.Array):
        return take_rows(weight_VD, jnp.asarray(ids_T)) * scale
    rows_TD = jnp.take(weight_VD, ids_T, axis=0, mode="clip").astype(jnp.float32)
    return (rows_TD * scale).astype(weight_VD.dtype).astype(jnp.float32)


def rope(x_TNH: jax.Array, cos_TJ: jax.Array, sin_TJ: jax.Array) -> jax.Array:
    """Turn the pairs (i, i + H/2) of every head by the angles whose cos and sin are given, J = H/2."""
    first, second = jnp.split(x_TNH, 2, axis=-1)
    cos, sin = cos_TJ[..., None, :], sin_TJ[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def geglu(gate_TF: jax.Array, up_TF: jax.Array) -> jax.Array:
    """Return gelu(gate) * up with the tanh approximation; the activation is on the gate."""
    return jax.nn.gelu(gate_TF, approximate=True) * up_TF
