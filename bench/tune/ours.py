"""A LoRA step of the trainer as a system of bench/tune: python -m bench.tune.ours."""

from typing import Any

import jax.numpy as jnp

from bench.train.answering import answer_calls
from bench.train.ours import start, step
from bench.train.shapes import Shape
from gemworks.model.gemma3 import build
from gemworks.train.adapters.base import held, new_base
from gemworks.train.adapters.kinds import LoRA
from gemworks.train.loop import Run
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule
from gemworks.train.state import random_params
from gemworks.train.trained import Frozen


def load(shape: dict[str, Any], dtype: str, rank: int) -> dict[str, Any]:
    """Compile, and do the first steps."""
    timed = Shape(**shape)
    recipe = Recipe(
        model=timed.config,
        adapter=LoRA(rank=rank, alpha=2.0 * rank),
        rows=timed.rows,
        tokens=timed.tokens,
        dtype=dtype,  # type: ignore[arg-type]
        steps=1000,
        optimizer=Optimizer(peak=1e-4, weight_decay=0.0),
        schedule=Schedule(kind="constant"),
        execution=Execution(remat=timed.name == "1b"),
    )
    arrays = random_params(timed.config, 0)

    def leaf(name: str, _: tuple[int, ...]) -> Any:
        array = arrays.pop(name)
        return held(name, jnp.asarray(array, dtype if array.ndim == 2 else "float32"), dtype)

    base = new_base(build(timed.config, leaf), recipe.adapter)  # type: ignore[arg-type]
    return start(Run(recipe, None, base=base), timed, Frozen(base, None))  # type: ignore[arg-type]


if __name__ == "__main__":
    answer_calls({"load": load, "step": step})
