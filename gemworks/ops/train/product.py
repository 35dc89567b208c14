"""Products for training: operands in the weights' dtype, sums in fp32, forward and backward.

jax's own rule for the gradient of a bf16 product with an fp32 result multiplies the fp32 cotangent with the bf16
operand: on a GPU or TPU that is an fp32 product, several times slower than the forward one. Here the cotangent is
rounded to the operands' dtype first, as every bf16 trainer does. In fp32 nothing is rounded.
"""

import jax
import jax.numpy as jnp

from gemworks.ops.gradients import with_gradient
from gemworks.ops.kv import Array
from gemworks.ops.weight import Weight
from gemworks.ops.xla import basic

# B rows, T tokens, D input width, F output width, V vocabulary rows


def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Return einsum(spec, a, b) in fp32. Every letter is in two of the three terms at least, and no dots."""
    return _product(spec, a, b)


def _plain(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, precision="highest", preferred_element_type=jnp.float32)


def _forward(spec: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(spec, a, b), (a, b)


def _backward(spec: str, kept: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = kept
    terms, out = spec.split("->")
    left, right = terms.split(",")
    d_a = product(f"{out},{right}->{left}", d_out.astype(b.dtype), b)
    d_b = product(f"{left},{out}->{right}", a, d_out.astype(a.dtype))
    return d_a.astype(a.dtype), d_b.astype(b.dtype)


_product = with_gradient(_plain, _forward, _backward)

_LEADING = "abc"


def linear(x_BTD: jax.Array, weight_FD: Weight) -> jax.Array:
    """Return y_BTF = x_BTD @ weight_FD.T in fp32, for any number of leading axes; quantized weights as ops/xla does."""
    if not isinstance(weight_FD, jax.Array):
        y = basic.linear(x_BTD.reshape(-1, x_BTD.shape[-1]), weight_FD)
        return y.reshape(*x_BTD.shape[:-1], -1)
    lead = _LEADING[: x_BTD.ndim - 1]
    return product(f"{lead}d,fd->{lead}f", x_BTD.astype(weight_FD.dtype), weight_FD)


def embed(ids_BT: Array, weight_VD: Weight, *, scale: float) -> jax.Array:
    """Return x_BTD = weight[ids] * scale as ops/xla does; the gradient of the table is summed in fp32."""
    if not isinstance(weight_VD, jax.Array):
        return basic.embed(ids_BT, weight_VD, scale=scale)
    return _embed(scale, jnp.asarray(ids_BT), weight_VD)


# A gather's own gradient adds in the table's dtype. In bf16 a sum stops growing at 256 times what is added, and the
# commonest token of a batch is there more often.
def _plain_embed(scale: float, ids_BT: jax.Array, weight_VD: jax.Array) -> jax.Array:
    return basic.embed(ids_BT, weight_VD, scale=scale)


def _embed_forward(scale: float, ids_BT: jax.Array, weight_VD: jax.Array):
    return _embed(scale, ids_BT, weight_VD), (ids_BT, weight_VD)


def _embed_backward(scale: float, kept, d_x_BTD: jax.Array):
    ids_BT, weight_VD = kept
    d_VD = jnp.zeros(weight_VD.shape, jnp.float32).at[ids_BT].add(d_x_BTD * scale, mode="drop")
    return None, d_VD.astype(weight_VD.dtype)


_embed = with_gradient(_plain_embed, _embed_forward, _embed_backward)
