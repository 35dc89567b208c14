"""Training in float32: weights from a seed, the optimizer, the step. Needs optax, of the [train] extra.

While training, the layers' arrays of one name are one array with the layer in front (layers.attn.q.weight [6, F, D]):
the optimizer then has 15 arrays to go through and not 80, and orthogonalizes six matrices at once.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax import contrib

from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Gemma3, build
from recipes.tiny_standin.loss import mean_loss
from recipes.tiny_standin.packing import Rows
from recipes.tiny_standin.recipe import Recipe

Stacks = dict[str, jax.Array]  # a model's arrays by our names without the layer's number


def initial_weights(config: TextConfig, seed: int) -> Stacks:
    """Matrices from a normal distribution of variance 1 / columns; gains such that branches start small."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {}

    def leaf(name: str, shape: tuple[int, ...]) -> None:
        array = rng.normal(size=shape) * shape[-1] ** -0.5
        if name.endswith(".scale"):
            array = np.full(shape, (2 * len(config.layers)) ** -0.5 - 1 if "post_norm" in name else 0.0)
        found.setdefault(_place(name)[0], []).append(array)

    build(config, leaf)
    return {
        name: jnp.asarray(np.stack(arrays) if name.startswith("layers.") else arrays[0], jnp.float32)
        for name, arrays in found.items()
    }


def model_of(stacks: Stacks, config: TextConfig) -> Gemma3:
    """The model whose arrays these are."""

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        stack, layer = _place(name)
        return stacks[stack] if layer is None else stacks[stack][layer]

    return build(config, leaf)


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices of the blocks, Adam for embedding and gains; rates fall to 0 in a line."""

    def schedule(peak: float) -> optax.Schedule:
        up = optax.linear_schedule(0, peak, recipe.warm_up)
        return optax.join_schedules(
            [up, optax.linear_schedule(peak, 0, recipe.steps - recipe.warm_up)], [recipe.warm_up]
        )

    def orthogonalized(stacks: Stacks):
        matrices = contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)
        return jax.tree.map(lambda x: matrices if x.ndim == 3 else None, stacks)

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


def begin(recipe: Recipe, config: TextConfig, devices: Sequence[jax.Device]):
    """Return (stacks, optimizer state, put, step) of a new run.

    `put` divides a batch's rows over the devices. `step(rows, stacks, state)` returns (stacks, state, loss before it)
    and takes over the arrays it is given. XLA runs most operations of so small a model on one core; with a device a
    core each does half of the rows: 137 -> 91 ms a step of 1,024 tokens on two cores of an AMD EPYC.
    """
    mesh = Mesh(np.asarray(devices), ("rows",))
    divided, whole = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    transform = optimizer(recipe)
    stacks = jax.device_put(initial_weights(config, recipe.seed), whole)
    state = jax.device_put(transform.init(stacks), whole)

    @partial(jax.jit, donate_argnums=(1, 2), out_shardings=whole)
    def step(rows: Rows, stacks: Stacks, state):
        loss, gradient = jax.value_and_grad(lambda stacks: mean_loss(model_of(stacks, config), rows))(stacks)
        change, state = transform.update(gradient, state, stacks)
        return optax.apply_updates(stacks, change), state, loss

    return stacks, state, partial(jax.device_put, device=divided), step


def _place(name: str) -> tuple[str, int | None]:
    """(name of the stack, layer) of one of our names."""
    first, _, rest = name.partition(".")
    if first != "layers":
        return name, None
    layer, _, rest = rest.partition(".")
    return f"layers.{rest}", int(layer)
