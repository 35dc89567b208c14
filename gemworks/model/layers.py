"""The parameters: matrices, norms and the embedding table. Arrays are stored as published, [out, in].

`quant`, LoRA and sharding replace these leaves from outside; nothing here knows of them.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks import ops
from gemworks.ops.kv import Array

# T tokens, D input width, F output width, V vocabulary rows, S soft tokens


class Linear(eqx.Module):
    """y_TF = x_TD @ weight_FD.T; no model of the family has a bias here."""

    weight: jax.Array

    def __call__(self, x_TD: jax.Array) -> jax.Array:
        """Return y_TF in fp32."""
        return ops.linear(x_TD, self.weight)


class RMSNorm(eqx.Module):
    """Root-mean-square norm with a zero-centred gain: the published weight w multiplies as 1 + w."""

    scale: jax.Array
    eps: float = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the last axis normed, in fp32."""
        return ops.rms_norm(x, self.scale, eps=self.eps)


class Embedding(eqx.Module):
    """The token table, weight_VD; also the output head where the model ties them."""

    weight: jax.Array

    @property
    def scale(self) -> float:
        """sqrt(D) rounded to the table's dtype before the product, as in training. 27B in bf16: 73.5, not 73.32."""
        return float(np.asarray(self.weight.shape[1] ** 0.5, self.weight.dtype))

    def __call__(self, ids_T: Array) -> jax.Array:
        """Return x_TD = weight[ids] * scale, in fp32."""
        return ops.embed(ids_T, self.weight, scale=self.scale)


class SoftTokens(eqx.Module):
    """Embeddings from an encoder that replace those of the table: token t takes row index_T[t], or none where it is -1.

    rows_SD are as the first layer takes them: nothing scales or rounds them (spec 4.1). S is a shape of the program and
    rows that no token takes are allowed. Without soft tokens a batch has None, and the program has no trace of them.
    """

    rows_SD: Array
    index_T: Array  # int32

    def put(self, x_TD: jax.Array) -> jax.Array:
        """Return x_TD with the rows in their tokens' places."""
        index_T = jnp.asarray(self.index_T)
        rows_TD = jnp.asarray(self.rows_SD, jnp.float32)[jnp.maximum(index_T, 0)]
        return jnp.where(index_T[:, None] >= 0, rows_TD, x_TD)
