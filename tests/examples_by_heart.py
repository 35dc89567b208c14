"""Twenty examples to be learnt by heart: two words that name one, and three that follow from no rule."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.ops.train.product import linear
from gemworks.train.adapters.prompt import prompt_ids
from gemworks.train.forward import Rows, hidden
from gemworks.train.trained import trained_model

NUM, KEY, VALUE = 20, 2, 3


def example_rows(recipe) -> Rows:
    """One example a row, after the soft prompt if there is one; loss on its values only."""
    rng = np.random.default_rng(4)
    first = np.array(prompt_ids(recipe.adapter, recipe.model), np.int32)
    ids = np.zeros((NUM, recipe.tokens), np.int32)
    mask = np.zeros(ids.shape, np.float32)
    n = len(first)
    ids[:, :n] = first
    ids[:, n] = 3 + np.arange(NUM) // 5
    ids[:, n + 1] = 10 + np.arange(NUM) % 5
    ids[:, n + KEY : n + KEY + VALUE] = rng.integers(20, 150, (NUM, VALUE))
    mask[:, n + KEY - 1 : n + KEY + VALUE - 1] = 1
    targets = np.roll(ids, -1, axis=1)
    position = np.broadcast_to(np.arange(recipe.tokens, dtype=np.int32), ids.shape)
    return Rows(ids, targets, mask, np.ones(ids.shape, np.int32), position)


@dataclass
class Examples:
    """The same rows at every step."""

    recipe: Any
    digest: str = "twenty examples"

    def batch(self, step: int, rows: slice | None = None) -> Rows:
        return Rows(*(array[rows or slice(None)] for array in example_rows(self.recipe)))


def right(recipe, params, base) -> float:
    """The share of values whose word is the likeliest."""
    rows = example_rows(recipe)

    @jax.jit
    def best(params, base):
        model = trained_model(recipe, params, base)
        head = model.embed.weight if isinstance(model.embed.weight, jax.Array) else model.embed.weight.part(0, 1)
        return jnp.argmax(linear(hidden(model, rows), head), axis=-1)

    told = rows.loss_mask_BT > 0
    return float((np.asarray(best(params, base)) == rows.targets_BT)[told].mean())
