"""A run that can be taken up again: steps, losses, and a file of everything the next step needs."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from recipes.tiny_standin.training import Schedule, Stacks, begin

Report = Callable[[str, int, int], None]  # what is going on, how much of it is done, how much there is

_LOSS_EVERY = 20  # steps between two losses that are kept and shown
_KEEP_EVERY = 250  # steps between two files


class Learned(NamedTuple):
    """What a run came to: arrays on the host, losses of every twentieth step and the last, seconds of all starts."""

    stacks: Stacks
    losses: list[float]
    seconds: float


def learn(
    name: str,
    schedule: Schedule,
    stacks: Stacks,
    loss: Callable[[Stacks, Any], jax.Array],
    batch: Callable[[int], Any],
    *,
    kept: Path,
    report: Report,
) -> Learned:
    """Minimize `loss` over batch(0), batch(1), ...; a run whose file `kept` is there goes on where it stopped.

    One device: with two, each of 2,048 patches' halves waits for the other at every step, and on a machine that does
    other things too that took 293 ms a step where one device took 113.
    """
    stacks, state, put, step = begin(schedule, stacks, loss, jax.devices()[:1])
    done, losses, spent_s = 0, [], 0.0
    if kept.is_file():
        done, losses, spent_s, leaves = _read(kept)
        like, shape = jax.tree.flatten((stacks, state))
        assert [one.shape for one in leaves] == [one.shape for one in like], f"{kept} is of another run: delete it"
        placed = [jax.device_put(leaf, one.sharding) for leaf, one in zip(leaves, like, strict=True)]
        stacks, state = jax.tree.unflatten(shape, placed)
    started = time.perf_counter() - spent_s
    for number in range(done, schedule.steps):
        stacks, state, now = step(put(batch(number)), stacks, state)
        if number % _LOSS_EVERY == 0 or number + 1 == schedule.steps:
            losses.append(float(now))
            report(f"{name}, loss {losses[-1]:.3f}", number + 1, schedule.steps)
        if (number + 1) % _KEEP_EVERY == 0 or number + 1 == schedule.steps:
            spent_s = time.perf_counter() - started
            _write(kept, number + 1, losses, spent_s, jax.tree.leaves((stacks, state)))
    return Learned(jax.device_get(stacks), losses, spent_s)


def _write(path: Path, done: int, losses: list[float], spent_s: float, leaves: list[jax.Array]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        arrays = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        np.savez(file, done=np.array(done), losses=np.array(losses), seconds=np.array(spent_s), **arrays)
    os.replace(partial, path)


def _read(path: Path) -> tuple[int, list[float], float, list[np.ndarray]]:
    with np.load(path, allow_pickle=False) as stored:
        leaves = [stored[f"leaf_{i}"] for i in range(len(stored.files) - 3)]
        return int(stored["done"]), stored["losses"].tolist(), float(stored["seconds"]), leaves
