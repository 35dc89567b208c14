"""One training step as one compiled program: micro-batches, clipping, optimizer, moving average, guard.

A step whose loss or gradient is not finite changes nothing, and neither do those started after it, because the state is
not at their number: what the loop then saves is the last good state.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from gemworks.parallel.plan import state_shardings
from gemworks.train.forward import Layout
from gemworks.train.loss import Call, Terms
from gemworks.train.optimizer import make_optimizer, schedule
from gemworks.train.recipe import Recipe
from gemworks.train.state import State, state_shapes
from gemworks.train.trained import Frozen, trained_model, trained_shapes

# A micro-batches, B rows of each


class Seen(NamedTuple):
    """What a step measured: means over its targets, fp32 scalars."""

    loss: jax.Array
    more: dict[str, jax.Array]
    weight: jax.Array
    grad_norm: jax.Array
    rate: jax.Array
    is_finite: jax.Array


@lru_cache(maxsize=8)
def make_step(recipe: Recipe, layout: Layout | None = None) -> Callable[[State, Any, Any, Any], tuple[State, Seen]]:
    """Return the compiled (state, number, batch, frozen) -> (state, seen); the state given is used up.

    `number` is the step that the batch is of.

    Every array of `batch` is [A, B, ...]: the rows of each micro-batch.
    """
    shapes = trained_shapes(recipe)
    transform, rate = make_optimizer(recipe, shapes), schedule(recipe, recipe.optimizer.peak)

    def step(state: State, number: jax.Array, batch: Any, frozen: Any) -> tuple[State, Seen]:
        grads, terms = gradient(recipe, state, batch, frozen, layout)
        weight = jnp.maximum(terms.weight, 1e-8)
        grads = jax.tree.map(lambda g: g / weight, grads)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in grads.values()))
        if recipe.optimizer.clip:
            grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, recipe.optimizer.clip / (norm + 1e-6)), grads)
        loss = terms.total / weight
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates: Any
        updates, opt = transform.update(grads, state.opt, dict(state.params))
        params = {name: array + updates[name] for name, array in state.params.items()}
        new = State(state.step + 1, params, opt, _averaged(recipe, state, params))
        counts = is_finite & (state.step == number)
        new = jax.tree.map(lambda after, before: jnp.where(counts, after, before), new, state)
        seen = Seen(
            loss,
            {k: v / weight for k, v in terms.more.items()},
            terms.weight,
            norm,
            jnp.asarray(rate(state.step)),
            is_finite,
        )
        return new, seen

    if layout is None:
        return jax.jit(step, donate_argnums=0)
    placed = state_shardings(layout.plan, layout.mesh, state_shapes(recipe))
    whole = NamedSharding(layout.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, in_shardings=(placed, None, None, None), out_shardings=(placed, whole))


def gradient(recipe: Recipe, state: State, batch: Any, frozen: Any, layout: Layout | None) -> tuple[dict, Terms]:
    """Return (gradient of the total, sums of the terms) over all micro-batches of a step."""
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    base, frozen = frozen if isinstance(frozen, Frozen) else (None, frozen)

    def micro(i: jax.Array, rows: Any) -> tuple[dict, Terms]:
        model = None if base is None else base.model
        call = Call(jax.random.fold_in(key, i), frozen, layout, recipe.execution.remat, model)

        def objective(params):
            terms = recipe.method(trained_model(recipe, params, base, call.key), rows, call)
            return terms.total, terms

        grads, terms = jax.grad(objective, has_aux=True)(dict(state.params))
        return _as_stored(grads, layout), terms

    if recipe.accumulate == 1:
        return micro(jnp.zeros((), jnp.int32), jax.tree.map(lambda x: x[0], batch))

    def add(carry, turn):
        return jax.tree.map(jnp.add, carry, micro(*turn)), None

    first = jax.eval_shape(micro, jnp.zeros((), jnp.int32), jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    zeros = _as_stored(zeros[0], layout), zeros[1]
    return jax.lax.scan(add, zeros, (jnp.arange(recipe.accumulate), batch))[0]


def _as_stored(grads: dict, layout: Layout | None) -> dict:
    """The gradients placed as their parameters are stored: summed over devices and divided at once (reduce-scatter)."""
    if layout is None:
        return grads
    return {name: layout.put(g, layout.plan.placements[name].stored) for name, g in grads.items()}


def _averaged(recipe: Recipe, state: State, params: dict) -> dict:
    if not recipe.ema:
        return {}
    # Early steps count more, or the random start would be remembered (Tarvainen and Valpola 2017, arXiv 1703.01780).
    decay = jnp.minimum(recipe.ema, (1.0 + state.step) / (10.0 + state.step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, dict(state.ema), params)
