"""Matrices whose product is more than one product: with the low-rank additions (LoRA, Hu et al. 2021, arXiv
2106.09685) of several adapters, one for each token.

    y_T = x_T W.T + (x_T A.T, zeroed where it is not the token's own adapter) B.T
    y_T = y_T * gain of the token's adapter                                           where some adapter is DoRA's

The adapters of all slots lie side by side: slot s has the columns [(s - 1) * rank, s * rank) of P. So a batch of any
mix of adapters is two small products more, whose cost depends on the slots there are and not on those in use; nothing
is gathered a row but DoRA's gains. Slot 0 is no adapter and has no columns.

DoRA (Liu et al. 2024, arXiv 2402.09353) gives every row of W + BA a length of its own, m; served, that is one factor a
row, m / |W + BA|, which whoever loads the adapter computes once.

The base matrix stays what it is, float or quantized, and is multiplied as always. A token of slot 0 gets that product,
bit for bit.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from gemworks.ops.kv import Array
from gemworks.ops.weight import Weight

# T tokens, D input width, F output width, P = slots * rank, S = slots + 1

Product = Callable[[jax.Array, Weight], jax.Array]


class Composite(eqx.Module):
    """What stands in a matrix's place and multiplies in its own way."""

    @abc.abstractmethod
    def times(self, x_TD: jax.Array, product: Product) -> jax.Array:
        """Return y_TF. `product(x, matrix)` multiplies by one plain matrix."""

    def embed(self, ids_T: Array, scale: float) -> jax.Array:
        """Return x_TD as ops.embed does, where this is a table."""
        raise AssertionError(f"{type(self).__name__} is no table")


class Adapted(Composite):
    """A matrix with the adapters of every slot, scaled, and which columns are whose token's: own_TP, bool.

    gain_SF and slot_T: the factor of every slot's rows, and each token's slot; None where no adapter has any.
    """

    weight: Weight
    a_PD: Array
    b_FP: Array
    own_TP: jax.Array
    gain_SF: Array | None = None
    slot_T: Array | None = None

    def times(self, x_TD: jax.Array, product: Product) -> jax.Array:
        """Return y_TF."""
        y_TF = product(x_TD, self.weight)
        low_TP = jnp.where(self.own_TP, product(x_TD, jnp.asarray(self.a_PD)), 0)
        adapted_TF = y_TF + product(low_TP, jnp.asarray(self.b_FP))
        if self.gain_SF is not None:
            adapted_TF = adapted_TF * jnp.asarray(self.gain_SF)[jnp.asarray(self.slot_T)]
        # Not y + 0: that makes 0 of -0, and NaN where another slot's B is not finite.
        return jnp.where(self.own_TP.any(axis=1, keepdims=True), adapted_TF, y_TF)


def own_columns(adapter_T: Array, *, rank: int, columns: int) -> jax.Array:
    """Return own_TP: true in the columns of each token's slot, of `columns` = slots * rank."""
    slot_P = jnp.arange(columns) // rank + 1
    return jnp.asarray(adapter_T)[:, None] == slot_P


def linear(x_TD: jax.Array, weight: Composite | Weight, *, product: Product) -> jax.Array:
    """Return y_TF = x_TD @ weight.T, with what a composite matrix adds."""
    return weight.times(x_TD, product) if isinstance(weight, Composite) else product(x_TD, weight)
