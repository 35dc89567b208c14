"""Quantized matrices in plain jax.numpy: what every format means, computed the slow way. The twin of ops/cpu.

A product with a quantized matrix is defined as the product with the matrix it stands for, dequantized in fp32, and fp32
activations. The kernels round the activations to int8 and are held to a bound around this (docs/numerics.md).
"""

import jax
import jax.numpy as jnp

from gemworks.ops.layout import LINE, ROWS, UNIT, panel_bytes
from gemworks.ops.weight import BLOCK, PackedWeight, QuantWeight, code_shapes

# F rows, D columns, P panels of 16 rows, U units of 64 columns, L lines of 64 bytes


def dequantize(weight: QuantWeight | PackedWeight) -> jax.Array:
    """Return weight_FD in fp32: code * scale."""
    if isinstance(weight, PackedWeight):
        weight = unpack(weight)
    F, D = weight.shape
    values_FD = _values(weight)
    scales = jnp.asarray(weight.scales).astype(jnp.float32)
    if weight.format.endswith("-b32"):
        return (values_FD.reshape(F, D // BLOCK, BLOCK) * scales[:, :, None]).reshape(F, D)
    if weight.format == "sfp8":
        return values_FD * scales
    return values_FD if weight.format == "bf16" else values_FD * scales[:, None]


def take_rows(weight: QuantWeight | PackedWeight, ids_T: jax.Array) -> jax.Array:
    """Return the rows weight[ids_T] in fp32 without dequantizing the others; ids are clipped."""
    if isinstance(weight, PackedWeight):
        weight = unpack(weight)
    ids_T = jnp.clip(ids_T, 0, weight.shape[0] - 1)
    scales = jnp.asarray(weight.scales)
    if weight.format not in ("sfp8", "bf16"):
        scales = scales[ids_T]
    rows = QuantWeight(jnp.asarray(weight.codes)[ids_T], scales, weight.format, (ids_T.shape[0], weight.shape[1]))
    return dequantize(rows)


def unpack(packed: PackedWeight) -> QuantWeight:
    """Return the row-major form, traceable; layout.unpack is the same in numpy."""
    F, D = packed.shape
    P, U = -(-F // ROWS), -(-D // UNIT)
    panels = jnp.asarray(packed.data).reshape(P, panel_bytes(packed.format, D))
    if packed.format.endswith("-b32"):
        by_unit = panels.reshape(P, U, -1, LINE)
        lines_PULn, scale_lines = by_unit[:, :, :-1], by_unit[:, :, -1]
        scales = jax.lax.bitcast_convert_type(scale_lines.reshape(P, U, 2, ROWS, 2), jnp.float16)
        scales = scales.transpose(0, 3, 1, 2).reshape(P * ROWS, U * 2)[:F, : D // BLOCK]
    else:
        end = panels.shape[1] - (0 if packed.format == "bf16" else LINE)
        lines_PULn = panels[:, :end].reshape(P, U, -1, LINE)
        scales = jax.lax.bitcast_convert_type(panels[:, end:].reshape(P, -1, 4), jnp.float32).reshape(-1)
        scales = scales[: 1 if packed.format == "sfp8" else F]
    rows = lines_PULn.reshape(P, U, -1, ROWS, 4).transpose(0, 3, 1, 2, 4).reshape(P * ROWS, -1)[:F]
    (code_shape, code_dtype), _ = code_shapes(packed.format, F, D)
    if packed.format.startswith("int8"):
        rows = rows ^ jnp.uint8(0x80)
    if code_dtype.itemsize == 2:
        rows = rows.reshape(F, -1, 2)
    codes = jax.lax.bitcast_convert_type(rows, code_dtype)[:, : code_shape[1]]
    return QuantWeight(codes, scales, packed.format, packed.shape)


def _values(weight: QuantWeight) -> jax.Array:
    """Return the codes as numbers, fp32 [F, D]."""
    F, D = weight.shape
    codes = jnp.asarray(weight.codes)
    if weight.format.startswith("int4"):
        bytes_ = codes.reshape(F, D // BLOCK, 1, BLOCK // 2)
        nibbles = jnp.concatenate([bytes_ & 0xF, bytes_ >> 4], axis=2).reshape(F, D)
        return nibbles.astype(jnp.float32) - 8.0
    if weight.format.startswith("int8"):
        return codes.astype(jnp.float32)
    if weight.format == "bf16":
        return jax.lax.bitcast_convert_type(codes, jnp.bfloat16).astype(jnp.float32)
    return sfp8_values(codes)


def sfp8_values(codes: jax.Array) -> jax.Array:
    """Return what the codes of gemma.cpp's switched 8-bit float stand for (its compression/types.h), in fp32.

    c = code & 127: from 64 on three bits of mantissa, (1 + (c & 7) / 8) * 2^((c >> 3) - 15); below two,
    (1 + (c & 3) / 4) * 2^((c >> 2) - 23); 0 is zero.
    """
    c = (codes & 0x7F).astype(jnp.int32)
    large = c >= 64
    mantissa = jnp.where(large, (c & 7) << 20, (c & 3) << 21)
    exponent = jnp.where(large, (c >> 3) - 15, (c >> 2) - 23) + 127
    bits = jnp.where(c == 0, 0, exponent << 23 | mantissa) | (codes >> 7).astype(jnp.int32) << 31
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
