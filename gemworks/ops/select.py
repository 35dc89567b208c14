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

# op -> module below ops/<backend>/ that has it. Backends in order of preference; xla has every op.
_OPS = {
    "rms_norm": "basic",
    "linear": "basic",
    "embed": "basic",
    "rope": "basic",
    "geglu": "basic",
    "attention": "attention",
    "penalize": "sample",
    "sample": "sample",
    "top_logprobs": "sample",
}
_BACKENDS = ("xla",)

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


def choose(op: str) -> BackendChoice:
    """Return the choice for `op`, honouring `force` and GEMWORKS_BACKEND."""
    assert op in _OPS, op
    if forced := _forced.get(op) or _forced.get("*"):
        return BackendChoice(op, _checked(forced), "forced by the caller")
    if forced := env.forced_backend():
        return BackendChoice(op, _checked(forced), "forced by GEMWORKS_BACKEND")
    return BackendChoice(op, "xla", "the only backend of this release")


def explain() -> list[BackendChoice]:
    """Return the choice for every op."""
    return [choose(op) for op in _OPS]


def available() -> tuple[str, ...]:
    """Return the backends this machine can run."""
    return _BACKENDS


@contextlib.contextmanager
def force(op: str, backend: str) -> Iterator[None]:
    """Serve `op` ("*": every op) from `backend` inside the block."""
    assert op == "*" or op in _OPS, op
    before = _forced.get(op)
    _forced[op] = _checked(backend)
    try:
        yield
    finally:
        if before is None:
            del _forced[op]
        else:
            _forced[op] = before


def _checked(backend: str) -> str:
    if backend not in _BACKENDS:
        raise BackendError(f'ops have no backend "{backend}" here.\nAvailable: {", ".join(_BACKENDS)}.')
    return backend


@functools.cache
def _load(backend: str, op: str) -> Callable:
    return getattr(importlib.import_module(f"gemworks.ops.{backend}.{_OPS[op]}"), op)
