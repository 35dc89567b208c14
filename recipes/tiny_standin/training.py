"""Training in float32 on the one model definition: weights from a seed, the loss, and the step.

The rows of a batch are computed by jax.vmap over `full_batch`; texts in a row see only themselves.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from optax import contrib

from gemworks.model.config import TextConfig, five_local_one_global
from gemworks.model.gemma3 import Gemma3, build, full_batch
from recipes.tiny_standin.packing import Rows

# B rows, L tokens a row, V vocabulary rows


class Recipe(NamedTuple):
    """What a run is made of. `steps` batches of `batch_tokens`, every `long_every`-th in rows of `long_row`."""

    seed: int = 0
    steps: int = 1000
    batch_tokens: int = 4096
    row: int = 256
    long_row: int = 1024
    long_every: int = 8
    muon_peak: float = 0.01
    adam_peak: float = 0.01
    warm_up: int = 40


def tiny_config(vocab_size: int) -> TextConfig:
    """The architecture: Gemma 3's, five local layers and a global one."""
    return TextConfig(
        vocab_size=vocab_size,
        model_dim=96,
        ffw_dim=256,
        num_heads=2,
        num_kv_heads=1,
        head_dim=48,
        query_scale=48**-0.5,
        layers=five_local_one_global(6, window=64),
        max_positions=1024,
    )


def initial_model(config: TextConfig, seed: int) -> Gemma3:
    """Matrices from a normal distribution of variance 1 / columns, norm gains such that branches start small."""
    rng = np.random.default_rng(seed)

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        if name.endswith("post_norm.scale"):
            return jnp.full(shape, (2 * len(config.layers)) ** -0.5 - 1, jnp.float32)
        if name.endswith(".scale"):
            return jnp.zeros(shape, jnp.float32)
        return jnp.asarray(rng.normal(size=shape) * shape[-1] ** -0.5, jnp.float32)

    return build(config, leaf)


def mean_loss(model: Gemma3, rows: Rows) -> jax.Array:
    """Cross-entropy in nats over the weighted positions of a batch."""
    log_probs_BLV = jax.nn.log_softmax(logits(model, rows))
    chosen_BL = jnp.take_along_axis(log_probs_BLV, rows.next_BL[..., None], axis=-1)[..., 0]
    return -(chosen_BL * rows.weight_BL).sum() / jnp.maximum(rows.weight_BL.sum(), 1)


def logits(model: Gemma3, rows: Rows) -> jax.Array:
    """logits_BLV of whole rows."""

    def row(ids_L: jax.Array, segment_L: jax.Array) -> jax.Array:
        h_LD, _ = model(full_batch(ids_L, model.config, segment_L))
        return model.logits(h_LD)

    return jax.vmap(row)(rows.ids_BL, rows.segment_BL)


def optimizer(recipe: Recipe, vocab_size: int) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices of the blocks, Adam for embedding and gains; rates fall to 0 in a line."""

    def schedule(peak: float) -> optax.Schedule:
        up = optax.linear_schedule(0, peak, recipe.warm_up)
        return optax.join_schedules(
            [up, optax.linear_schedule(peak, 0, recipe.steps - recipe.warm_up)], [recipe.warm_up]
        )

    def orthogonalized(parameters):
        matrix = contrib.MuonDimensionNumbers()
        return jax.tree.map(lambda x: matrix if x.ndim == 2 and x.shape[0] != vocab_size else None, parameters)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        contrib.muon(
            schedule(recipe.muon_peak),
            adam_learning_rate=schedule(recipe.adam_peak),
            adam_b2=0.99,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=orthogonalized,
        ),
    )


@eqx.filter_jit(donate="all-except-first")
def train_step(rows: Rows, model: Gemma3, state, update):
    """One step; return (model, optimizer state, loss before it)."""
    loss, gradient = eqx.filter_value_and_grad(mean_loss)(model, rows)
    change, state = update(gradient, state, model)
    return eqx.apply_updates(model, change), state, loss


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
