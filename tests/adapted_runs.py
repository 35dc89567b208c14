"""Small recipes with adapters, and their bases: shared by the adapters' tests."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from nano_runs import RandomRows, nano_recipe

from gemworks.model.gemma3 import build
from gemworks.quant.rtn import quantize
from gemworks.train.adapters.base import Base, held, new_base
from gemworks.train.adapters.kinds import base_plan
from gemworks.train.feed import put_batch
from gemworks.train.loop import Run
from gemworks.train.recipe import Optimizer
from gemworks.train.state import random_params
from gemworks.train.trained import new_params


def adapted_recipe(adapter, **changes):
    """The nano recipe with an adapter: no moving average, a rate that moves it in a few steps."""
    settings = {"ema": 0.0, "optimizer": Optimizer(peak=1e-2, weight_decay=0.0)} | changes
    return replace(nano_recipe(**settings), adapter=adapter)


def floats(recipe, seed: int = 5) -> dict[str, np.ndarray]:
    """The base's parameters, fp32, by name: attention far from uniform."""
    return {name: np.asarray(x) * (1 if x.ndim == 1 else 1.5) for name, x in random_params(recipe.model, seed).items()}


def base_of(recipe, arrays=None) -> Base:
    """The base of a recipe, its matrices in the format the adapter names."""
    arrays = floats(recipe) if arrays is None else arrays
    plan = base_plan(recipe.adapter)

    def leaf(name, shape):
        format = None if plan is None else plan.format_of(name, shape)
        if format is None:
            return held(name, jnp.asarray(arrays[name], recipe.dtype if len(shape) == 2 else "float32"), recipe.dtype)
        return held(name, quantize(arrays[name], format), recipe.dtype)

    return new_base(build(recipe.model, leaf), recipe.adapter)


def moved(recipe, base, seed: int = 9) -> dict:
    """Parameters of an adapter that changes something: its own with noise in all of them."""
    rng = np.random.default_rng(seed)
    start = new_params(recipe, base)
    return {
        name: jnp.asarray(x * (1 + 0.2 * rng.standard_normal(x.shape)) + 0.1 * rng.standard_normal(x.shape), "float32")
        if not name.endswith("magnitude")
        else jnp.asarray(x * rng.uniform(0.5, 1.5, x.shape), "float32")
        for name, x in start.items()
    }


def some_rows(recipe, step: int = 0):
    """Rows as a method takes them."""
    return RandomRows(recipe).batch(step)


def some_batch(recipe, step: int = 0):
    """A batch as a step takes it."""
    return put_batch(some_rows(recipe, step), recipe, None)


def run_of(recipe, base) -> Run:
    """A run on random rows."""
    return Run(recipe, RandomRows(recipe), base=base)
