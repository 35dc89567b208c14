"""Where a loss stopped being a number: the first module, in the order of computation, whose result is not finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.model.gemma3 import Batch
from gemworks.ops import select
from gemworks.ops.kv import RowsPlan
from gemworks.train.forward import Layout, Rows
from gemworks.train.recipe import Recipe
from gemworks.train.state import State
from gemworks.train.step import gradient
from gemworks.train.trained import Frozen, trained_model


def first_bad(recipe: Recipe, state: State, batch: Any, frozen: Any, layout: Layout | None = None) -> str:
    """Return a sentence that names what is not finite first for this batch [A, B, ...]: the parameter, module, loss or
    gradient. `state` is the one before the step.
    """
    for name, array in state.params.items():
        if not _is_finite(array):
            return f"the parameter {name} is not finite already"
    for i in range(recipe.accumulate):
        rows = jax.tree.map(lambda x, i=i: x[i], batch)
        if all(hasattr(rows, field) for field in Rows._fields) and (
            found := _first_module(recipe, state, rows, frozen)
        ):
            return found
    grads, terms = jax.jit(lambda state, batch: gradient(recipe, state, batch, frozen, layout))(state, batch)
    if not _is_finite(terms.total / terms.weight):
        return "the stack's output is finite and the loss is not: the head, or the method's own terms"
    # Backwards the computation goes, so the last bad one of the model's order comes first.
    bad = [name for name in state.params if not _is_finite(grads[name])]
    if bad:
        return (
            f"the loss is finite and the gradient is not, from {bad[-1]} back ({len(bad)} of {len(grads)} parameters)"
        )
    return "every gradient is finite and their norm is not: it is larger than fp32 holds"


def _first_module(recipe: Recipe, state: State, rows: Any, frozen: Any) -> str | None:
    config, dtype = recipe.model, np.dtype(jnp.dtype(recipe.dtype))
    model = trained_model(recipe, state.params, frozen.base if isinstance(frozen, Frozen) else None)
    outputs: list[tuple[str, bool]] = []

    def recording(function: Callable) -> Callable:
        compiled = jax.jit(function)

        def layer(block, x, *inputs):
            if not outputs:
                outputs.append(("embed", _is_finite(x)))
            x, kv = compiled(block, x, *inputs)
            outputs.append((f"layers.{len(outputs) - 1}", _is_finite(x)))
            return x, kv

        return layer

    window = config.local_spec.window if config.local_spec else None
    local, global_ = (RowsPlan(rows.position_BT, rows.segment_BT, one, dtype) for one in (window, None))
    with select.force("*", "train"):
        h_BTD, _ = model(Batch(rows.ids_BT, rows.position_BT, local, global_), each_layer=recording)
    outputs.append(("final_norm", _is_finite(h_BTD)))
    bad = next((name for name, is_finite in outputs if not is_finite), None)
    return bad and f"the first module whose output is not finite is {bad}"


def _is_finite(x: jax.Array) -> bool:
    return bool(jnp.isfinite(x).all())
