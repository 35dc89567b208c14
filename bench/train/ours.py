"""The step of `gemworks train` as a system of bench/train: python -m bench.train.ours."""

import resource
import time
from typing import Any

import jax
import numpy as np

from bench.train.answering import answer_calls
from bench.train.shapes import Shape
from gemworks.train.feed import put_batch
from gemworks.train.forward import Rows
from gemworks.train.loop import Run, begin
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule
from gemworks.train.speed import matmul_peak
from gemworks.train.step import make_step

_kept: dict[str, Any] = {}


def peak(dtype: str) -> dict[str, Any]:
    """What one device multiplies."""
    return {"flops": matmul_peak(dtype, seconds=2.0)}


def load(shape: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Compile, and do the first step."""
    timed = Shape(**shape)
    recipe = Recipe(
        model=timed.config,
        rows=timed.rows,
        tokens=timed.tokens,
        dtype=dtype,  # type: ignore[arg-type]
        steps=1000,
        optimizer=Optimizer(peak=1e-5),
        schedule=Schedule(kind="constant"),
        execution=Execution(remat=timed.name == "1b"),
    )
    return start(Run(recipe, None), timed)  # type: ignore[arg-type]


def start(run: Run, timed: Shape, frozen: Any = None) -> dict[str, Any]:
    """Compile a run's step, do it twice on the shape's batch and return what `load` says. frozen: the step's own."""
    recipe = run.recipe
    ids, targets = timed.batch()
    position = np.broadcast_to(np.arange(timed.tokens, dtype=np.int32), ids.shape)
    rows = Rows(ids, targets, np.ones(ids.shape, np.float32), np.ones(ids.shape, np.int32), position)
    _kept.update(state=begin(run, None, None), step=make_step(recipe), n=0, frozen=frozen)
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
    answer_calls({"peak": peak, "load": load, "step": step})
