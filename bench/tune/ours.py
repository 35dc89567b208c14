"""A LoRA step of the trainer as a system of bench/tune: python -m bench.tune.ours."""

import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.train.answering import answer_calls
from bench.train.shapes import Shape
from gemworks.model.gemma3 import build
from gemworks.train.adapters.base import held, new_base
from gemworks.train.adapters.kinds import LoRA
from gemworks.train.feed import put_batch
from gemworks.train.forward import Rows
from gemworks.train.loop import Run, begin
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule
from gemworks.train.state import random_params
from gemworks.train.step import make_step
from gemworks.train.trained import Frozen

_kept: dict[str, Any] = {}


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
    ids, targets = timed.batch()
    position = np.broadcast_to(np.arange(timed.tokens, dtype=np.int32), ids.shape)
    rows = Rows(ids, targets, np.ones(ids.shape, np.float32), np.ones(ids.shape, np.int32), position)
    state = begin(Run(recipe, None, base=base), None, None)  # type: ignore[arg-type]
    _kept.update(state=state, step=make_step(recipe), n=0, frozen=Frozen(base, None))
    _kept["batch"] = put_batch(rows, recipe, None)
    loss = step()["loss"]
    step()
    how = f"{jax.devices()[0].device_kind}, {'layers computed again' if recipe.execution.remat else 'layers kept'}"
    return {"loss": loss, "how": how, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def step() -> dict[str, Any]:
    """One step, timed until its parameters are there."""
    begun = time.perf_counter()
    _kept["state"], seen = _kept["step"](_kept["state"], np.int32(_kept["n"]), _kept["batch"], _kept["frozen"])
    jax.block_until_ready(_kept["state"])
    _kept["n"] += 1
    return {"seconds": time.perf_counter() - begun, "loss": float(seen.loss)}


if __name__ == "__main__":
    answer_calls({"load": load, "step": step})
