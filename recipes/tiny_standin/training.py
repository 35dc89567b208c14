"""Training in float32: weights from a seed, the optimizer, the step. Needs optax, of the [train] extra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Gemma3, build
from recipes.tiny_standin.loss import mean_loss
from recipes.tiny_standin.packing import Rows
from recipes.tiny_standin.recipe import Recipe


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
