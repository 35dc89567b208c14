"""Checkpoints of a run: written while the run goes on, whole or not at all, the last few kept. Orbax does the work.

    DIRECTORY/recipe.json            what the run is; a run that continues must be the same
    DIRECTORY/checkpoints/500/...    the state after 500 steps; a name appears when all of it is on the disk

A checkpoint is independent of the mesh: it is read as the mesh of the run that reads it wants it.
"""

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gemworks.errors import CheckpointError, ConfigError, StorageError
from gemworks.parallel import multihost
from gemworks.train.recipe import Execution, Recipe, differences, flat
from gemworks.train.state import State
from gemworks.weights.atomic import replacing

RECIPE_FILE = "recipe.json"
_FOLDER = "checkpoints"

# Orbax reports what its file driver says in words.
_FULL = ("no space left", "disk quota exceeded", "file too large", "resource_exhausted")


def claim(directory: Path, recipe: Recipe, data_digest: str, *, accept_changes: bool = False) -> None:
    """Make the directory this run's, or check that it is. Raises ConfigError with the differences where it is not."""
    now = flat(recipe) | {"data_digest": data_digest}
    path = directory / RECIPE_FILE
    if path.is_file() and not accept_changes:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} must be the recipe of a run, and is not JSON ({error}).") from error
        if changed := differences(before, json.loads(json.dumps(now))):
            raise ConfigError(
                f"{directory} holds a run of another recipe:\n  " + "\n  ".join(changed) + "\n"
                "Continue it with the settings it had, use another directory, or add --accept-changes."
            )
    text = json.dumps(now, indent=2) + "\n"
    with replacing(path, needed=len(text), force=True) as partial:
        partial.write_text(text, encoding="utf-8")


def claim_together(directory: Path, recipe: Recipe, data_digest: str, *, accept_changes: bool = False) -> None:
    """`claim` for a run of any number of processes: the first claims, the others must see that, and have the same."""

    def first() -> None:
        if multihost.is_first():
            claim(directory, recipe, data_digest, accept_changes=accept_changes)

    def other() -> None:
        if multihost.is_first():
            return
        if not (directory / RECIPE_FILE).is_file():
            raise ConfigError(
                f"{directory} must be one directory that all processes see: process 0 wrote {RECIPE_FILE} and it is "
                "not there."
            )
        mine = json.loads(json.dumps(flat(recipe) | {"data_digest": data_digest}))
        if changed := differences(read_recipe(directory), mine):
            raise ConfigError("was started with another recipe than process 0:\n  " + "\n  ".join(changed))

    multihost.together(first)
    multihost.together(other)


class Checkpoints:
    """The checkpoints of one run. `save` returns when the state is copied; errors of writing come with the next.

    Called from one thread.
    """

    def __init__(self, directory: Path, execution: Execution):
        # 2 s, which no other command pays.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.path = directory.absolute() / _FOLDER
        options = ocp.CheckpointManagerOptions(
            max_to_keep=execution.keep,
            keep_period=execution.keep_every,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            step_format_fixed_length=None,
        )
        self._manager = ocp.CheckpointManager(self.path, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        # Closing waits for the other processes, which an error may have ended.
        if error is None or multihost.count() == 1:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State) -> None:
        """Start to write the state after `step` steps. A checkpoint of that step that is there is kept."""
        if step in self._manager.all_steps():
            return
        self._check_space(state)
        if jax.default_backend() == "cpu":
            # Orbax reads a view of a CPU array while it writes, and the next step may take over its memory.
            state = jax.tree.map(jnp.copy, state)
        self._guarded(step, lambda: self._manager.save(step, args=self._ocp.args.StandardSave(state)))

    def wait(self) -> None:
        """Return when all is on the disk; raise StorageError if it could not be written."""
        self._guarded(None, self._manager.wait_until_finished)
        self._guarded(None, self._manager.check_for_errors)

    def load(self, shapes: State, shardings: Any = None, step: int | None = None) -> State | None:
        """Return the newest state (or that of `step`) placed as `shardings` says, None where there is none.

        Raises CheckpointError if it is not a state of these shapes.
        """
        step = self._manager.latest_step() if step is None else step
        if step is None:
            return None
        if shardings is None:
            one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shardings = jax.tree.map(lambda _: one, shapes)
        wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        try:
            restored: Any = self._manager.restore(step, args=self._ocp.args.StandardRestore(wanted))
            return restored
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"{self.path / str(step)} cannot be read as a state of this run: {_first_line(error)}\n"
                f"Remove it to continue from the one before ({', '.join(map(str, self.steps()[:-1])) or 'none'})."
            ) from error

    def _check_space(self, state: State) -> None:
        needed = sum(shard.data.nbytes for x in jax.tree.leaves(state) for shard in _shards(x))
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise StorageError(_no_room(self.path, f"needs {needed:,} bytes, and its disk has {free:,} bytes free"))

    def _guarded(self, step: int | None, work: Any) -> None:
        try:
            work()
        except Exception as error:
            text = f"{error} {error.__cause__ or ''}".lower()
            is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            if is_full or any(word in text for word in _FULL):
                raise StorageError(_no_room(self.path, "could not be written: the disk is full")) from error
            if isinstance(error, OSError):
                raise StorageError(f"{self.path}: a checkpoint could not be written: {_first_line(error)}") from error
            raise


def _shards(x: Any) -> list[Any]:
    """What this process writes of an array: each part once."""
    return [one for one in x.addressable_shards if one.replica_id == 0]


def _no_room(path: Path, what: str) -> str:
    return (
        f"{path}: a checkpoint {what}.\n"
        "Free some room and run the same command again: it continues from the last whole checkpoint."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def read_recipe(directory: Path) -> Mapping[str, Any]:
    """Return the flat recipe of the run in a directory. Raises ConfigError where there is none."""
    path = directory / RECIPE_FILE
    if not path.is_file():
        raise ConfigError(f"{directory} holds no run: {RECIPE_FILE} is not there.")
    return json.loads(path.read_text(encoding="utf-8"))
