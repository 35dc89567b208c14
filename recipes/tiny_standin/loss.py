"""Loss and predictions of whole rows, on the one model definition.

The rows of a batch are computed by jax.vmap over `full_batch`; texts in a row see only themselves.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes

from gemworks.model.gemma3 import Gemma3, full_batch
from gemworks.model.layers import SoftTokens
from recipes.tiny_standin.packing import Rows

# B rows, L tokens a row, V vocabulary rows


def mean_loss(model: Gemma3, rows: Rows) -> jax.Array:
    """Cross-entropy in nats over the weighted positions of a batch."""
    return cross_entropy(logits(model, rows), rows)


def cross_entropy(logits_BLV: jax.Array, rows: Rows) -> jax.Array:
    """The mean in nats over the weighted positions of `rows`."""
    log_probs_BLV = jax.nn.log_softmax(logits_BLV)
    chosen_BL = jnp.take_along_axis(log_probs_BLV, rows.next_BL[..., None], axis=-1)[..., 0]
    return -(chosen_BL * rows.weight_BL).sum() / jnp.maximum(rows.weight_BL.sum(), 1)


def logits(model: Gemma3, rows: Rows, *, see_BL: jax.Array | None = None, soft: SoftTokens | None = None) -> jax.Array:
    """logits_BLV of whole rows. see_BL and soft, whose arrays have rows too: for images, as in `full_batch`."""

    def row(ids_L, segment_L, see_L, soft) -> jax.Array:
        h_LD, _ = model(full_batch(ids_L, model.config, segment_L, see_T=see_L, soft=soft))
        return model.logits(h_LD)

    return jax.vmap(row)(rows.ids_BL, rows.segment_BL, see_BL, soft)


mean_loss_jit = eqx.filter_jit(mean_loss)


@eqx.filter_jit
def predicted(model: Gemma3, rows: Rows) -> jax.Array:
    """The likeliest next token at every position, [B, L]."""
    return logits(model, rows).argmax(axis=-1)


def as_stored(model: Gemma3) -> Gemma3:
    """The model as it is after saving and loading: matrices in bf16, gains rounded to bf16 and computed in fp32."""

    def rounded(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x, ml_dtypes.bfloat16)
        return x if x.ndim > 1 else x.astype(jnp.float32)

    return jax.tree.map(rounded, model)
