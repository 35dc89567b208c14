"""One run in several processes, each with the devices of its machine: jax.distributed, and what must be agreed on.

    connect("10.0.0.1:4321", processes=2, process=0)      before anything else asks jax for devices
    together(check)                                       an error in one process is an error in all
    put(rows, sharding, shape, at)                        a global array of which this process has some rows
    Vote(mesh)                                            "shall we stop?" asked of all, answered the same to all

Every process runs the same program over one mesh. Messages, metrics and reports are process 0's; a checkpoint is
written by all of them, each its own parts, into one directory that all must see. On a CPU the processes talk with gloo.

A process that is gone shows in the others as a collective that fails, or as jax's coordinator ending the process: the
first is `PeerLost`, the second is seen by whoever started the process (cli/watch.py).
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemworks.errors import BackendError, ConfigError, GemworksError
from gemworks.parallel.mesh import AXES

_T = TypeVar("_T")

AUTO = "auto"  # for `coordinator`: as the cluster's environment says (Slurm, Open MPI, Cloud TPU, Kubernetes)

_SECONDS_TO_MEET = 300
_MESSAGE_BYTES = 4096

# What a lost peer's error says, of gloo, NCCL and jax's coordinator; lower case.
_LOST = ("gloo", "nccl", "coordination", "barrier", "heartbeat", "connection re", "connection closed", "socket closed")


class PeerLost(GemworksError):
    """Another process of the run is gone."""


def connect(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Join the run's other processes; process 0 is the one that listens at `coordinator`, HOST:PORT.

    Raises ConfigError for numbers that do not fit, BackendError if they do not all come within five minutes.
    """
    if coordinator == AUTO:
        arguments: dict[str, Any] = {}
    else:
        arguments = _checked(coordinator, processes, process)
    if jax.config.jax_cpu_collectives_implementation is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=_SECONDS_TO_MEET)
    except ValueError as error:
        raise ConfigError(
            f"the environment does not say which processes make this run ({error}).\n"
            "Give --coordinator HOST:PORT --processes N --process I to each."
        ) from error
    except RuntimeError as error:
        raise BackendError(
            f"the processes of this run did not meet at {coordinator} within {_SECONDS_TO_MEET} s: "
            f"{str(error).splitlines()[0][:200]}\n"
            "Start all of them, with one coordinator that all can reach, and the numbers 0 to N - 1."
        ) from error


def _checked(coordinator: str, processes: int | None, process: int | None) -> dict[str, Any]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f'a coordinator is written as HOST:PORT, or {AUTO}; got "{coordinator}".')
    if processes is None or process is None:
        raise ConfigError(f"a coordinator at {coordinator} needs the number of processes and which of them this is.")
    if not 0 <= process < processes:
        raise ConfigError(f"process must be one of 0 to {processes - 1}, got {process}.")
    return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}


def count() -> int:
    """Processes of this run."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that speaks."""
    return jax.process_index() == 0


def together(check: Callable[[], _T]) -> _T:
    """Return check() of this process once all have done theirs; where it raised in any, raise in all."""
    if count() == 1:
        return check()
    found: Any = None
    error = None
    try:
        found = check()
    except GemworksError as raised:
        error = raised
    said = _told("" if error is None else str(error))
    if error is not None:
        raise error
    for number, text in enumerate(said):
        if text:
            raise ConfigError(f"process {number} of {count()}: {text}")
    return found


def _told(text: str) -> list[str]:
    """Every process's text, at all of them."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(data)).reshape(count(), -1)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def check_mesh(mesh: Mesh) -> None:
    """Raise ConfigError where a process would have no part in the run."""
    if count() > 1 and mesh.size != len(jax.devices()):
        every = len(jax.devices())
        raise ConfigError(
            f"{count()} processes have {every} devices together, and the mesh has {mesh.size}.\n"
            f"Give execution.mesh axes that make {every}, such as execution.mesh=fsdp={every}."
        )


def rows_here(sharding: NamedSharding, shape: Sequence[int], axis: int = 0) -> slice:
    """The rows of an array of this shape, along `axis`, that this process's devices need: one range."""
    of_devices = sharding.addressable_devices_indices_map(tuple(shape)).values()
    held = [index[axis].indices(shape[axis]) for index in of_devices if index is not None]
    return slice(min(start for start, _, _ in held), max(stop for _, stop, _ in held))


def put(part: np.ndarray, sharding: NamedSharding, shape: Sequence[int], first: Sequence[int]) -> jax.Array:
    """Return the array of this shape and placement; `part` is what lies from index `first` on of it."""

    def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "a device that has no part of the array is not asked for it"
        bounds = [one.indices(size) for one, size in zip(index, shape, strict=True)]
        return part[tuple(slice(lo - at, hi - at) for (lo, hi, _), at in zip(bounds, first, strict=True))]

    return jax.make_array_from_callback(tuple(shape), sharding, of_device)


def put_whole(array: Any, sharding: Any) -> jax.Array:
    """Return an array that every process has whole, placed."""
    if count() == 1 or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return put(array, sharding, array.shape, (0,) * array.ndim)


def whole(array: jax.Array) -> np.ndarray:
    """Return all of an array on the host. Every process must call this in the same order."""
    if not array.is_fully_addressable:
        gather = _gather(array.sharding.mesh)  # type: ignore[attr-defined]
        # All devices are waited for: on a CPU what is still at it holds the threads that compile the next program.
        array = jax.block_until_ready(gather(array))
    return np.asarray(array)


@lru_cache(maxsize=2)
def _gather(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


class Vote:
    """Whether any process wants to stop: every process gets the same answer at the same step.

    The question is a program of its own, put after the step that is running; its answer is read when that is done.
    """

    def __init__(self, mesh: Mesh):
        self._placed = NamedSharding(mesh, PartitionSpec(AXES))
        self._any = jax.jit(lambda wish: wish.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._size = mesh.size

    def cast(self, wants_to_stop: bool) -> jax.Array:
        """Ask; the answer, when it is there, is > 0 if any process wants to stop."""
        wish = np.full(1, wants_to_stop, np.int32)
        return self._any(jax.make_array_from_callback((self._size,), self._placed, lambda _: wish))


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of jax or Orbax is about another process."""
    return count() > 1 and any(word in str(error).lower() for word in _LOST)


def lost(where: Any) -> PeerLost:
    """The error for a process that is gone; `where` is the directory of the run's checkpoints."""
    return PeerLost(
        "another process of this run is gone; if it said why, it is in its own output.\n"
        f"Start all processes again: they continue from the last whole checkpoint in {where}."
    )


def part() -> None:
    """Leave the run when all of it is done; what this process does after it does alone."""
    if count() > 1:
        jax.distributed.shutdown()


def leave(code: int) -> None:
    """End this process at once after an error. At its usual end jax waits for the others, which may never come."""
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(2)  # the coordinator goes last: the others are ended with it, and have something to say
    os._exit(code)
