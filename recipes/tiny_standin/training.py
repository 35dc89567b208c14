"""Training in float32: weights from a seed, the optimizer, the step. Needs optax, of the [train] extra.

Of any model whose arrays are dotted names: the text decoder here, the vision tower and both together in `tiny_eyes`.

While training, the layers' arrays of one name are one array with the layer in front (layers.attn.q.weight [6, F, D]):
the optimizer then has 15 arrays to go through and not 80, and orthogonalizes six matrices at once.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax import contrib

from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Gemma3, build

Stacks = dict[str, jax.Array]  # a model's arrays by our names without the layer's number
Leaf = Callable[[str, tuple[int, ...]], Any]  # what the `build` functions of models call for every array


class Schedule(Protocol):
    """How long and how fast a run learns; a Recipe is one."""

    @property
    def steps(self) -> int: ...
    @property
    def warm_up(self) -> int: ...
    @property
    def muon_peak(self) -> float: ...
    @property
    def adam_peak(self) -> float: ...


def initial_weights(config: TextConfig, seed: int) -> Stacks:
    """Matrices from a normal distribution of variance 1 / columns; gains such that branches start small."""
    rng = np.random.default_rng(seed)

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.normal(size=shape) * shape[-1] ** -0.5  # drawn for gains too: what follows does not depend on them
        if name.endswith(".scale"):
            return np.full(shape, (2 * len(config.layers)) ** -0.5 - 1 if "post_norm" in name else 0.0)
        return drawn

    return stacked(lambda leaf: build(config, leaf), array)


def stacked(build: Callable[[Leaf], Any], array: Callable[[str, tuple[int, ...]], np.ndarray]) -> Stacks:
    """The arrays that `build` asks for, made by `array`, those of one name in all layers as one."""
    found: dict[str, list[np.ndarray]] = {}
    layered: set[str] = set()

    def leaf(name: str, shape: tuple[int, ...]) -> None:
        stack, layer = _place(name)
        found.setdefault(stack, []).append(array(name, shape))
        if layer is not None:
            layered.add(stack)

    build(leaf)
    return {
        name: jnp.asarray(np.stack(arrays) if name in layered else arrays[0], jnp.float32)
        for name, arrays in found.items()
    }


def leaf_of(stacks: Stacks) -> Leaf:
    """What gives a `build` function the arrays of `stacks`."""

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        stack, layer = _place(name)
        return stacks[stack] if layer is None else stacks[stack][layer]

    return leaf


def model_of(stacks: Stacks, config: TextConfig) -> Gemma3:
    """The model whose arrays these are."""
    return build(config, leaf_of(stacks))


def optimizer(recipe: Schedule) -> optax.GradientTransformation:
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


def begin(
    recipe: Schedule, stacks: Stacks, loss: Callable[[Stacks, Any], jax.Array], devices: Sequence[jax.Device]
) -> tuple[Stacks, Any, Callable, Callable]:
    """Return (stacks, optimizer state, put, step) of a new run that minimizes loss(stacks, rows).

    `put` divides a batch's rows over the devices. `step(rows, stacks, state)` returns (stacks, state, loss before it)
    and takes over the arrays it is given. XLA runs most operations of so small a model on one core; with a device a
    core each does half of the rows: 137 -> 91 ms a step of 1,024 tokens on two cores of an AMD EPYC.
    """
    mesh = Mesh(np.asarray(devices), ("rows",))
    divided, whole = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    transform = optimizer(recipe)
    stacks = jax.device_put(stacks, whole)
    state = jax.device_put(transform.init(stacks), whole)

    @partial(jax.jit, donate_argnums=(1, 2), out_shardings=whole)
    def step(rows: Any, stacks: Stacks, state):
        value, gradient = jax.value_and_grad(loss)(stacks, rows)
        change, state = transform.update(gradient, state, stacks)
        return optax.apply_updates(stacks, change), state, value

    return stacks, state, partial(jax.device_put, device=divided), step


def _place(name: str) -> tuple[str, int | None]:
    """(name of the stack, layer) of one of our names."""
    found = re.fullmatch(r"(.*\b)?layers\.(\d+)\.(.+)", name)
    return (f"{found[1] or ''}layers.{found[3]}", int(found[2])) if found else (name, None)
