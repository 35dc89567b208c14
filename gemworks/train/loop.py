"""The loop: batches in, steps, records, checkpoints. Every method of the package trains through `train`.

    run = Run(recipe, source, initial=..., frozen=...)
    result = train(run, Path("runs/a"), observe=[view])      again after a crash: continues where it was

A step is started before the one before it is looked at, so the device does not wait for the host. Not so on several
simulated CPU devices, which wait for each other for ever when two programs are queued.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gemworks.errors import ConfigError, GemworksError
from gemworks.model.gemma3 import Gemma3
from gemworks.parallel import multihost
from gemworks.parallel.mesh import make_mesh
from gemworks.parallel.plan import check_batch, make_plan, state_shardings
from gemworks.train.adapters.base import Base
from gemworks.train.checkpoints import Checkpoints, claim_together
from gemworks.train.feed import Source, read_batch
from gemworks.train.forward import Layout, parameter_shapes, place_model
from gemworks.train.guard import first_bad
from gemworks.train.metrics import Metrics
from gemworks.train.recipe import Execution, Recipe
from gemworks.train.speed import flops_per_token, matmul_peak
from gemworks.train.state import State, new_state, random_params, state_shapes
from gemworks.train.step import Seen, make_step
from gemworks.train.trained import Frozen, check_base, new_params, trained_shapes


class NotFinite(GemworksError):
    """A loss or gradient stopped being a number; the message says where, and where the last good state is."""


@dataclass(frozen=True)
class Run:
    """A recipe with what it names: batches, parameters to start from, and what the method reads and nobody trains.

    examine(step, state): called after every execution.examine_every steps and after the last one, with the state after
    that many steps; what it returns goes into that step's record.
    """

    recipe: Recipe
    source: Source
    initial: Callable[[], Mapping[str, Any]] | None = None
    frozen: Any = None
    base: Base | None = None  # what the recipe's adapter is beside
    examine: Callable[[int, State], Mapping[str, Any]] | None = None


class Result(NamedTuple):
    """The state when `train` ended, and whether all steps are done."""

    state: State
    is_done: bool


Record = Mapping[str, Any]


def train(
    run: Run,
    directory: Path,
    *,
    observe: Sequence[Callable[[Record], None]] = (),
    should_stop: Callable[[], bool] = lambda: False,
    accept_changes: bool = False,
    measure_peak: bool = True,
) -> Result:
    """Train until the recipe's steps are done or `should_stop`, from the newest checkpoint of `directory` if any.

    Raises ConfigError for a recipe that does not fit the directory, the data or the devices; StorageError if a
    checkpoint cannot be written; NotFinite when the loss stops being a number, with a checkpoint saved; PeerLost in a
    run of several processes (parallel/multihost.py), which all call this. Only the first of them has `observe` called;
    `should_stop` of any stops all.
    """
    recipe = run.recipe
    layout = make_layout(recipe)
    check_base(recipe, run.base)
    multihost.together(lambda: _check_source(run))
    claim_together(directory, recipe, run.source.digest, accept_changes=accept_changes)
    run = replace(run, frozen=place_model(run.frozen, layout) if isinstance(run.frozen, Gemma3) else run.frozen)
    if run.base is not None:
        run = replace(run, frozen=Frozen(run.base, run.frozen))
    with Checkpoints(directory, recipe.execution) as checkpoints:
        try:
            state = begin(run, checkpoints, layout)
            done = int(state.step)
            peak = matmul_peak(recipe.dtype) * recipe.execution.mesh.size if measure_peak else None
            with Metrics(directory, done) if multihost.is_first() else nullcontext() as metrics:
                observers = [] if metrics is None else [metrics.write, *observe]
                state = _Loop(run, layout, checkpoints, observers, peak).go(state, done, should_stop)
            checkpoints.wait()
        except Exception as error:
            if multihost.is_lost_peer(error):
                raise multihost.lost(checkpoints.path) from error
            raise
    return Result(state, int(state.step) == recipe.steps)


def make_layout(recipe: Recipe) -> Layout | None:
    """Return the mesh and the plan of a recipe, None for one device."""
    shape = recipe.execution.mesh
    check_batch(shape, rows=recipe.rows // recipe.accumulate, tokens=recipe.tokens)
    if shape.size == 1:
        return None
    mesh = make_mesh(shape)
    multihost.check_mesh(mesh)
    return Layout(mesh, make_plan(recipe.model, parameter_shapes(recipe.model), shape))


def begin(run: Run, checkpoints: Checkpoints | None, layout: Layout | None) -> State:
    """Return the newest saved state, or a new one, placed on the devices."""
    shapes = state_shapes(run.recipe)
    shardings = None if layout is None else state_shardings(layout.plan, layout.mesh, shapes)
    if checkpoints is not None and (state := checkpoints.load(shapes, shardings)) is not None:
        return state
    recipe = run.recipe
    if run.initial:
        given = run.initial()
    else:
        given = random_params(recipe.model, recipe.seed) if run.base is None else new_params(recipe, run.base)
    wanted = trained_shapes(recipe)
    if wrong := [n for n, shape in wanted.items() if n not in given or tuple(given[n].shape) != shape]:
        raise ConfigError(f"the parameters to start from must be those of the recipe's model; wrong: {wrong[:10]}.")
    # Committed to the device as what a checkpoint gives is: one compiled step serves both.
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    left, params = dict(given), {}
    for name in wanted:  # the host's are let go one by one
        array = np.asarray(left.pop(name), np.float32)
        params[name] = multihost.put_whole(array, one if shardings is None else shardings.params[name])
    if shardings is None:
        return jax.device_put(new_state(run.recipe, params), jax.devices()[0])
    return jax.jit(lambda params: new_state(run.recipe, params), out_shardings=shardings)(params)


class _Loop:
    """One call of `train`, from the state it begins with."""

    def __init__(
        self, run: Run, layout: Layout | None, checkpoints: Checkpoints, observe: Sequence, peak: float | None
    ):
        self.run, self.recipe, self.layout = run, run.recipe, layout
        self.checkpoints, self.observe = checkpoints, observe
        how = self.recipe.execution
        compiled = replace(self.recipe, execution=Execution(mesh=how.mesh, remat=how.remat))
        self.step = make_step(compiled, layout)
        self.flops = flops_per_token(self.recipe.model, self.recipe.tokens, is_frozen=self.recipe.adapter is not None)
        self.peak = peak
        # Programs of several CPU devices that are queued at once may each hold threads that the other waits for.
        self.is_queued = not (layout is not None and jax.default_backend() == "cpu")
        self.vote = multihost.Vote(layout.mesh) if layout is not None and multihost.count() > 1 else None
        self.asked: jax.Array | None = None

    def go(self, state: State, done: int, should_stop: Callable[[], bool]) -> State:
        every = self.recipe.execution.checkpoint_every
        waiting: tuple[int, Seen, Any, float] | None = None
        for n in range(done, self.recipe.steps):
            if self._stops(should_stop):
                break
            started = time.perf_counter()
            batch = read_batch(self.run.source, n, self.recipe, self.layout)
            state, seen = self.step(state, np.int32(n), batch, self.run.frozen)
            if waiting is not None:
                self._look(*waiting, state)
            waiting = n, seen, batch, started
            if not self.is_queued:
                jax.block_until_ready(state)
            if not self.is_queued or (n + 1) % every == 0 or self._is_examined(n + 1):
                self._look(*waiting, state)
                waiting = None
            if (n + 1) % every == 0:
                self.checkpoints.save(n + 1, state)
        if waiting is not None:
            self._look(*waiting, state)
        if int(state.step) > done:
            self.checkpoints.save(int(state.step), state)
        return state

    def _stops(self, should_stop: Callable[[], bool]) -> bool:
        """Whether to stop, with several processes one answer for all: where steps are queued, that to the last one's
        question, which is there already.
        """
        if self.vote is None:
            return should_stop()
        asked, self.asked = self.asked, self.vote.cast(should_stop())
        if not self.is_queued:
            asked = jax.block_until_ready(self.asked)
        return asked is not None and int(asked) > 0

    def _look(self, n: int, seen: Seen, batch: Any, started: float, state: State) -> None:
        """Wait for a step's figures, record them, and stop the run if they are not numbers."""
        seen = jax.device_get(seen)
        now = time.perf_counter()
        seconds = now - max(started, getattr(self, "_last", 0.0))
        self._last = now
        if not seen.is_finite:
            self._stop(n, seen, batch, state)
        tokens = self.recipe.rows * self.recipe.tokens
        record = {
            "step": n + 1,
            "loss": float(seen.loss),
            **{name: float(value) for name, value in seen.more.items()},
            "grad_norm": float(seen.grad_norm),
            "rate": float(seen.rate),
            "targets": float(seen.weight),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }
        if self.peak:
            record["mfu"] = self.flops * tokens / seconds / self.peak
        if self._is_examined(n + 1):
            assert self.run.examine is not None
            record |= self.run.examine(n + 1, state)
        if (n + 1) % self.recipe.execution.log_every == 0 or n + 1 == self.recipe.steps:
            for observer in self.observe:
                observer(record)

    def _is_examined(self, step: int) -> bool:
        """Whether the state after `step` steps is examined."""
        every = self.recipe.execution.examine_every
        return self.run.examine is not None and ((every > 0 and step % every == 0) or step == self.recipe.steps)

    def _stop(self, n: int, seen: Seen, batch: Any, state: State) -> None:
        """Save the last good state as that of step n, and say what was not finite."""
        if n > 0:
            self.checkpoints.save(n, state)
            self.checkpoints.wait()
        where = first_bad(self.recipe, state, batch, self.run.frozen, self.layout)
        raise NotFinite(
            f"step {n + 1}: loss {float(seen.loss)}, gradient norm {float(seen.grad_norm)}: {where}.\n"
            f"The state after step {n} is saved in {self.checkpoints.path}. Lower the rate, clip more, or look at what "
            f"step {n + 1} saw: gemworks data inspect."
        )


def _check_source(run: Run) -> None:
    """Raise ConfigError where the data is not what the recipe says. A source without these attributes is believed."""
    recipe, source = run.recipe, run.source
    for attribute, wanted, setting in (
        ("length", recipe.tokens, "tokens"),
        ("batch_rows", recipe.rows, "rows"),
    ):
        found = getattr(source, attribute, wanted)
        if found != wanted:
            raise ConfigError(f"{setting} of the recipe must be what the data has, got {wanted} and {found}.")
    vocab = getattr(source, "vocab_size", 0)
    if vocab > recipe.model.vocab_size:
        raise ConfigError(
            f"the model must have a row for each of the tokenizer's words, got vocab_size={recipe.model.vocab_size} "
            f"and data of {vocab} words."
        )
