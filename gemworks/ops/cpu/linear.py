"""Matrix product, table lookup and head on packed matrices. Anything else is the twin's (ops/xla)."""

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.ops.kv import Array
from gemworks.ops.weight import FORMATS, PackedWeight, Weight
from gemworks.ops.xla import basic
from gemworks.ops.xla import sample as xla_sample

# T tokens, D input width, F output width, V vocabulary rows, Q candidates

# bf16 matrices as published are read in place for this many tokens (csrc/rowmajor.inl); for more, XLA multiplies them.
ROW_MAJOR_TOKENS = 4


def linear(x_TD: jax.Array, weight_FD: Weight) -> jax.Array:
    """Return y_TF = x_TD @ weight_FD.T in fp32; integer formats round x to int8 in blocks of 32 (docs/numerics.md)."""
    out = jax.ShapeDtypeStruct((x_TD.shape[0], weight_FD.shape[0]), jnp.float32)
    if _is_row_major(weight_FD) and 0 < x_TD.shape[0] <= ROW_MAJOR_TOKENS:
        return jax.ffi.ffi_call("gemworks_linear_bf16", out)(_f32(x_TD), weight_FD)
    if not isinstance(weight_FD, PackedWeight) or not fits(weight_FD) or x_TD.shape[0] == 0:
        return basic.linear(x_TD, weight_FD)
    return jax.ffi.ffi_call("gemworks_linear", out)(_f32(x_TD), weight_FD.data, matrices=matrices(weight_FD))


def embed(ids_T: Array, weight_VD: Weight, *, scale: float) -> jax.Array:
    """Return x_TD = weight[ids] * scale; ids are clipped."""
    ids_T = jnp.asarray(ids_T, jnp.int32)
    if not isinstance(weight_VD, PackedWeight) or ids_T.shape[0] == 0:
        return basic.embed(ids_T, weight_VD, scale=scale)
    out = jax.ShapeDtypeStruct((ids_T.shape[0], weight_VD.shape[1]), jnp.float32)
    call = jax.ffi.ffi_call("gemworks_embed", out)
    return call(ids_T, weight_VD.data, matrices=matrices(weight_VD), scale=np.float32(scale))


def head_top(
    h_TD: jax.Array, weight_VD: Weight, *, vocab: int, top: int, with_total: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (values_TQ, ids_TQ, log_total_T) of the first `vocab` logits without storing them."""
    if not isinstance(weight_VD, PackedWeight) or not fits(weight_VD) or h_TD.shape[0] == 0:
        return xla_sample.head_top(h_TD, weight_VD, vocab=vocab, top=top, with_total=with_total, product=linear)
    T, top = h_TD.shape[0], min(top, vocab)
    out = (
        jax.ShapeDtypeStruct((T, top), jnp.float32),
        jax.ShapeDtypeStruct((T, top), jnp.int32),
        jax.ShapeDtypeStruct((T,), jnp.float32),
    )
    call = jax.ffi.ffi_call("gemworks_head_top", out)
    values_TQ, ids_TQ, log_total_T = call(
        _f32(h_TD), weight_VD.data, matrices=matrices(weight_VD), vocab=vocab, with_total=with_total
    )
    return values_TQ, ids_TQ, log_total_T


def _is_row_major(weight: Weight) -> bool:
    return isinstance(weight, jax.Array) and weight.dtype == jnp.bfloat16 and weight.shape[1] % 16 == 0


def fits(weight: PackedWeight) -> bool:
    """Whether the kernels take a matrix: whole vectors of 32 columns (any quantized format; bf16 may have others)."""
    return weight.shape[1] % 32 == 0


def matrices(*weights: PackedWeight) -> np.ndarray:
    """Return the attribute that tells a kernel the format and rows of each packed operand."""
    return np.array([(FORMATS.index(w.format), w.shape[0]) for w in weights], np.int64).reshape(-1)


def _f32(x: Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
