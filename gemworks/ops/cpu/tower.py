"""The vision tower by kernel (csrc/tower.inl, csrc/attend_all*.inl). Gradients are the twin's (ops/xla/tower.py).

Layers whose matrices are packed in int8 are one kernel; others multiply as `linear` does and attend in fp32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.ops.cpu.linear import linear
from gemworks.ops.gradients import with_gradient
from gemworks.ops.kv import Array
from gemworks.ops.tower import TowerLayer
from gemworks.ops.weight import PackedWeight
from gemworks.ops.xla import tower as xla

# P patches, D model width, N heads, H head width


def attend_all(q_NPH: Array, k_NPH: Array, v_NPH: Array, *, scale: float, exact: bool = True) -> jax.Array:
    """Return out_NPH; fp32 products where `exact`, else products of bytes (docs/numerics.md)."""
    if 0 in q_NPH.shape:
        return xla.attend_all(q_NPH, k_NPH, v_NPH, scale=scale)
    return _attend_all(*(jnp.asarray(x, jnp.float32) for x in (q_NPH, k_NPH, v_NPH)), float(scale), exact)


def _call(q_NPH, k_NPH, v_NPH, scale: float, exact: bool) -> jax.Array:
    out = jax.ShapeDtypeStruct(q_NPH.shape, jnp.float32)
    call = jax.ffi.ffi_call("gemworks_attend_all", out, vmap_method="sequential")
    return call(q_NPH, k_NPH, v_NPH, scale=np.float32(scale), exact=exact)


def _forward(q_NPH, k_NPH, v_NPH, scale: float, exact: bool):
    del exact
    return jax.vjp(functools.partial(xla.attend_all, scale=scale), q_NPH, k_NPH, v_NPH)


def _backward(scale: float, exact: bool, gradients, out_NPH):
    del scale, exact
    return gradients(out_NPH)


_attend_all = with_gradient(_call, _forward, _backward, constants=(3, 4))


def tower_layer(x_PD: jax.Array, layer: TowerLayer, *, heads: int, eps: float) -> jax.Array:
    """Return x_PD after one layer; in bytes where all its matrices are packed so."""
    if not _fits(x_PD.shape, layer, heads):
        return xla.tower_layer(x_PD, layer, heads=heads, eps=eps, product=linear, attend=attend_all)
    P, D = x_PD.shape
    # The second result is room for q, k and v: XLA frees it, where a workspace of ours would stay.
    results = (jax.ShapeDtypeStruct((P, D), jnp.float32), jax.ShapeDtypeStruct((3, P, D), jnp.float32))
    floats = [*layer.attn_norm, *layer.ffw_norm]
    packed = [one.weight.data for one in layer.products if isinstance(one.weight, PackedWeight)]
    biases = [one.bias for one in layer.products]
    operands = [*map(_f32, [x_PD, *floats]), *packed, *map(_f32, biases)]
    call = jax.ffi.ffi_call("gemworks_tower_layer", results, vmap_method="sequential")
    return call(*operands, heads=np.int64(heads), eps=np.float32(eps))[0]


def _fits(shape: tuple[int, ...], layer: TowerLayer, heads: int) -> bool:
    """Whether the kernel takes a layer of this shape: matrices packed in int8, widths of whole vectors."""
    P, D = shape
    if P == 0 or D % 32 or D // heads % 4:
        return False
    F = layer.up.bias.shape[0]
    wanted = [(D, D)] * 4 + [(F, D), (D, F)]
    return F % 32 == 0 and all(
        isinstance(one.weight, PackedWeight) and one.weight.format == "int8" and one.weight.shape == shape
        for one, shape in zip(layer.products, wanted, strict=True)
    )


def _f32(x: Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
