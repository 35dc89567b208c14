"""A matrix with low-rank additions (LoRA, Hu et al. 2021, arXiv 2106.09685), several of them, one for each token.

    y_T = x_T W.T + (x_T A.T, zeroed where it is not the token's own adapter) B.T

The adapters of all slots lie side by side: slot s has the columns [(s - 1) * rank, s * rank) of P. So a batch of any
mix of adapters is two small products more, whose cost depends on the slots there are and not on those in use; nothing
is gathered a row. Slot 0 is no adapter and has no columns.

The base matrix stays what it is, float or quantized, and is multiplied as always. A token of slot 0 gets that product,
bit for bit.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from gemworks.ops.kv import Array
from gemworks.ops.weight import Weight

# T tokens, D input width, F output width, P = slots * rank


class Adapted(eqx.Module):
    """A matrix with the adapters of every slot, scaled, and which columns are whose token's: own_TP, bool."""

    weight: Weight
    a_PD: Array
    b_FP: Array
    own_TP: jax.Array


def own_columns(adapter_T: Array, *, rank: int, columns: int) -> jax.Array:
    """Return own_TP: true in the columns of each token's slot, of `columns` = slots * rank."""
    slot_P = jnp.arange(columns) // rank + 1
    return jnp.asarray(adapter_T)[:, None] == slot_P


def linear(x_TD: jax.Array, adapted: Adapted | Weight, *, product) -> jax.Array:
    """Return y_TF. `product(x, matrix)` multiplies by one matrix: the base, and both of the adapters'."""
    if not isinstance(adapted, Adapted):
        return product(x_TD, adapted)
    y_TF = product(x_TD, adapted.weight)
    low_TP = jnp.where(adapted.own_TP, product(x_TD, jnp.asarray(adapted.a_PD)), 0)
    delta_TF = product(low_TP, jnp.asarray(adapted.b_FP))
    # Not y + 0: that makes 0 of -0, and NaN where another slot's B is not finite.
    return jnp.where(adapted.own_TP.any(axis=1, keepdims=True), y_TF + delta_TF, y_TF)
