"""Chooses a backend per op, once per process, and says why. The only importer of backends, and lazily.

    select.implementation("linear")         the function to call, chosen on first use
    select.explain()                        op, backend and reason, for `gemworks doctor`
    with select.force("linear", "xla"): ... for tests; "*" forces every op

GEMWORKS_BACKEND forces every op from outside. A choice is made while a program is traced, so forcing changes
programs traced afterwards, not compiled ones.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gemworks import env
from gemworks.errors import BackendError

# op -> module below ops/<backend>/ that has it. xla has every op; cpu those where XLA is far from what the machine can.
_OPS = {
    "xla": {
        "rms_norm": "basic",
        "linear": "basic",
        "embed": "basic",
        "rope": "basic",
        "geglu": "basic",
        "qkv": "block",
        "attention": "attention",
        "block_tail": "block",
        "layer_norm": "tower",
        "attend_all": "tower",
        "tower_layer": "tower",
        "head_norm": "block",
        "head_top": "sample",
        "penalize": "sample",
        "sample": "sample",
        "draw": "sample",
        "top_logprobs": "sample",
    },
    "cpu": {
        "linear": "linear",
        "embed": "linear",
        "qkv": "block",
        "attention": "attention",
        "block_tail": "block",
        "attend_all": "tower",
        "tower_layer": "tower",
        "head_norm": "block",
        "head_top": "linear",
    },
    # Chosen by nobody but the trainer, by force: the same results with another gradient, for rows [B, T, ...].
    "train": {
        "linear": "product",
        "embed": "product",
        "qkv": "block",
        "attention": "attention",
        "block_tail": "block",
    },
}

_forced: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Which backend serves an op here, and why."""

    op: str
    backend: str
    reason: str


def implementation(op: str) -> Callable:
    """Return the function that serves `op` on this machine."""
    return _load(choose(op).backend, op)


def twin(op: str) -> Callable:
    """Return the function of ops/xla for `op`, whatever serves it here: some take parts of their work from outside."""
    return _load("xla", op)


def choose(op: str) -> BackendChoice:
    """Return the choice for `op`, honouring `force` and GEMWORKS_BACKEND.

    "*" and GEMWORKS_BACKEND mean: that backend wherever it has the op, else xla.
    """
    assert op in _OPS["xla"], op
    if forced := _forced.get(op):
        return BackendChoice(op, forced, "forced by the caller")
    if forced := _forced.get("*"):
        return _forced_choice(op, forced, "the caller")
    if forced := env.forced_backend():
        return _forced_choice(op, _checked(forced), "GEMWORKS_BACKEND")
    if op not in _OPS["cpu"]:
        return BackendChoice(op, "xla", "XLA computes it well on every device")
    if why := _library().why_unavailable():
        return BackendChoice(op, "xla", f"no kernels: {why}")
    return BackendChoice(op, "cpu", f"kernels for {_library().isa()}")


def packs_weights() -> bool:
    """Whether quantized matrices should be given to `linear` in the packed order of the CPU kernels."""
    return choose("linear").backend == "cpu"


def packs_towers() -> bool:
    """Whether `tower_layer` has a kernel here, which wants its matrices packed in int8."""
    return choose("tower_layer").backend == "cpu"


def explain() -> list[BackendChoice]:
    """Return the choice for every op."""
    return [choose(op) for op in _OPS["xla"]]


def available() -> tuple[str, ...]:
    """Return the backends this machine can run."""
    return ("xla",) if _library().why_unavailable() else ("xla", "cpu")


@contextlib.contextmanager
def force(op: str, backend: str) -> Iterator[None]:
    """Serve `op` ("*": every op that the backend has) from `backend` inside the block."""
    assert op == "*" or op in _OPS["xla"], op
    before = _forced.get(op)
    if op != "*" and op not in _OPS.get(backend, {op}):
        raise BackendError(f'op {op} has no backend "{backend}"; it has xla.')
    _forced[op] = _checked(backend)
    try:
        yield
    finally:
        if before is None:
            del _forced[op]
        else:
            _forced[op] = before


def _forced_choice(op: str, backend: str, by: str) -> BackendChoice:
    if op in _OPS[backend]:
        return BackendChoice(op, backend, f"forced by {by}")
    return BackendChoice(op, "xla", f"{backend}, forced by {by}, has no kernel for it")


def _checked(backend: str) -> str:
    if backend not in _OPS:
        raise BackendError(f'ops have no backend "{backend}" here.\nAvailable: {", ".join(available())}.')
    if backend == "cpu" and (why := _library().why_unavailable()):
        raise BackendError(f'ops have no backend "cpu" here: {why}.\nAvailable: xla.')
    return backend


def _library():
    return importlib.import_module("gemworks.ops.cpu.library")


@functools.cache
def _load(backend: str, op: str) -> Callable:
    return getattr(importlib.import_module(f"gemworks.ops.{backend}.{_OPS[backend][op]}"), op)
