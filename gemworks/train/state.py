"""What a run owns and a checkpoint holds: step, parameters in fp32, optimizer state, moving average. Nothing else.

There is no key and no position in the data: both are functions of the seed and the step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.model.config import TextConfig
from gemworks.train.forward import Params, parameter_shapes
from gemworks.train.optimizer import make_optimizer
from gemworks.train.recipe import Recipe
from gemworks.train.trained import trained_shapes


class State(NamedTuple):
    """step: how many are done, int32. ema: the moving average of the parameters, {} where the recipe keeps none."""

    step: jax.Array
    params: Params
    opt: Any
    ema: Params


def new_state(recipe: Recipe, params: Params) -> State:
    """Return the state before the first step."""
    opt = make_optimizer(recipe, trained_shapes(recipe)).init(dict(params))
    # A copy: two entries of a donated state must not be one buffer.
    ema = {name: jnp.array(array, copy=True) for name, array in params.items()} if recipe.ema else {}
    return State(jnp.zeros((), jnp.int32), dict(params), opt, ema)


def state_shapes(recipe: Recipe) -> State:
    """Return the state with jax.ShapeDtypeStruct for arrays: nothing is allocated."""
    shapes = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in trained_shapes(recipe).items()}
    return jax.eval_shape(lambda params: new_state(recipe, params), shapes)


def random_params(config: TextConfig, seed: int) -> dict[str, np.ndarray]:
    """Return fp32 weights from a seed: matrices of variance 1 / columns, post-norm gains so that branches start small.

    Gemma 3's initialization is not disclosed; this one is ours. The table's rows have norm 1 before the embedding's
    scale of sqrt(D), as every row of the residual stream then has variance 1.
    """
    branch = (2 * len(config.layers)) ** -0.5 - 1

    def one(number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith(".scale"):
            return np.full(shape, branch if "post_norm" in name else 0.0, np.float32)
        # A stream of its own for each: the values do not depend on which other parameters there are.
        rng = np.random.default_rng([seed, number])
        return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)

    return {name: one(i, name, shape) for i, (name, shape) in enumerate(parameter_shapes(config).items())}
