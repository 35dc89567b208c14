"""Several models in one process under one memory budget: loaded when asked for, unloaded by least use.

It deals in names, sizes and whatever `load` returns (an engine, an LLM); plain Python, no jax.

    with host.get("gemma3:1b") as model:      loaded if it is not; not unloaded before the block ends
        model.generate(...)

A model is idle when nobody holds a lease on it. Idle ones are unloaded where a new one needs room (the one whose last
use is longest ago first, and after all others those that are kept for ever), or when their `keep_alive_s` has passed
and somebody calls `expire`. One that is in use never is: who asks for more than there is gets CapacityError at once,
with the numbers; LimitError, which is one, where it would fit when others are done.

The offline API uses it as it is; a server's event loop over `lend`, which never waits (server/host.py).

Bytes of a model that is loading or closing count, so that the budget holds at every moment.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from gemworks.errors import CapacityError, LimitError

Model = TypeVar("Model")

KEEP_ALIVE_S = 300.0  # as Ollama keeps a model after its last request
_NO_LIMIT = 1 << 62
_RETRY_S = 5.0  # an answer takes seconds, and ends the use of a model


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosted:
    """One loaded model, as `ps` shows it. Times are of the host's clock; expires_at None: kept, or in use."""

    name: str
    num_bytes: int
    leases: int
    last_used: float
    expires_at: float | None
    keep_alive_s: float | None


@dataclass(slots=True, eq=False)
class _Entry(Generic[Model]):
    name: str
    model: Model
    num_bytes: int
    leases: int
    last_used: float
    keep_alive_s: float | None


@dataclass(slots=True, eq=False)
class _Loading:
    """A model on its way. `waiting` threads besides the one that loads want it; `entry` or `error` when done."""

    name: str
    num_bytes: int = 0
    waiting: int = 0
    entry: Any = None
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.entry is not None or self.error is not None


class Lease(Generic[Model]):
    """The right to use a loaded model until `release` or the end of a `with` block. Any thread may release it."""

    def __init__(self, host: "ModelHost[Model]", entry: _Entry[Model]):
        self._host, self._entry = host, entry
        self._is_held = True

    @property
    def model(self) -> Model:
        """What `load` returned."""
        assert self._is_held, f"the lease on {self._entry.name} was released"
        return self._entry.model

    def release(self) -> None:
        """Give the model back; a second call does nothing."""
        with self._host._changed:
            if self._is_held:
                self._is_held = False
                self._host._release(self._entry)

    def __enter__(self) -> Model:
        return self.model

    def __exit__(self, *_exc: object) -> None:
        self.release()


class ModelHost(Generic[Model]):
    """Loads, lends and unloads models within `budget_bytes`. Thread-safe; private methods want the lock held, once.

    budget_bytes None: without a limit; most: models at once, besides.
    size(name) says what a model will take (engine/memory.py), before it is loaded; load(name) loads it and close(model)
    gives its memory back. They are called without the host's lock, `load` by one thread at a time. keep_alive_s None
    keeps idle models until their room is needed. clock() is in seconds.

    Invariant, at every moment: loaded + loading + closing bytes <= budget_bytes, and so many models <= most.
    """

    def __init__(
        self,
        budget_bytes: int | None,
        load: Callable[[str], Model],
        *,
        size: Callable[[str], int],
        most: int | None = None,
        close: Callable[[Model], None] = lambda model: getattr(model, "close")(),  # noqa: B009 - it has no type here
        keep_alive_s: float | None = KEEP_ALIVE_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._budget_bytes = _NO_LIMIT if budget_bytes is None else budget_bytes
        self._most = _NO_LIMIT if most is None else most
        self._load_model, self._size, self._close_model, self._clock = load, size, close, clock
        self._keep_alive_s = keep_alive_s
        self._entries: dict[str, _Entry[Model]] = {}  # the one used last is last
        self._loading: _Loading | None = None
        self._closing: dict[str, int] = {}  # bytes of what is being closed; it is not loaded again before it is
        self._is_closed = False
        self._changed = threading.Condition()

    def get(self, name: str, *, keep_alive_s: float | Literal["host"] | None = "host") -> Lease[Model]:
        """Return a lease on a model, loading it first where it is not; one thread loads, all who wait share the result.

        keep_alive_s: how long it stays after this use, instead of the host's own. Raises CapacityError where it cannot
        fit beside what is in use, and whatever `size` and `load` raise.
        """
        keep = self._keep_alive_s if keep_alive_s == "host" else keep_alive_s
        self.expire()
        with self._changed:
            entry = self._ready(name)
            if entry is None:
                entry = self._load(name)
            entry.keep_alive_s = keep
            return Lease(self, entry)

    def lend(self, name: str, *, keep_alive_s: float | None) -> Lease[Model] | None:
        """Return a lease on a model that is loaded, None where it is not. Waits for nothing but the lock."""
        with self._changed:
            entry = self._entries.get(name)
            if entry is None or self._is_closed:
                return None
            self._use(entry)
            entry.keep_alive_s = keep_alive_s
            return Lease(self, entry)

    def keep(self, name: str, keep_alive_s: float | None) -> bool:
        """Change how long a model stays after its last use, for `expire` to act on; False where it is not loaded."""
        with self._changed:
            entry = self._entries.get(name)
            if entry is not None:
                entry.keep_alive_s = keep_alive_s
            return entry is not None

    def unload(self, name: str) -> bool:
        """Unload a model when nobody uses it: now, or when its last lease is released; return whether it was now.

        A `get` that comes before its last release keeps it loaded.
        """
        with self._changed:
            entry = self._entries.get(name)
            if entry is None:
                return False
            entry.keep_alive_s = 0.0
            if entry.leases:
                return False
            self._close(entry)
            return True

    def expire(self) -> float | None:
        """Unload idle models whose time has passed; return the seconds until the next one's, None if none has one."""
        with self._changed:
            while True:
                ends = [(at, entry) for entry in self._entries.values() if (at := _expires_at(entry)) is not None]
                if not ends:
                    return None
                at, entry = min(ends, key=lambda end: end[0])
                left = at - self._clock()
                if left > 0:
                    return left
                self._close(entry)

    def models(self) -> list[Hosted]:
        """Return what is loaded, the one used last first."""
        with self._changed:
            return [_told(entry) for entry in reversed(self._entries.values())]

    def model(self, name: str) -> Hosted | None:
        """Return what is known of a loaded model, None where it is not loaded."""
        with self._changed:
            entry = self._entries.get(name)
            return None if entry is None else _told(entry)

    @property
    def free_bytes(self) -> int:
        """What of the budget nobody has, not counting what idle models would give back. Without a budget: very much."""
        with self._changed:
            return self._budget_bytes - self._taken()

    def close(self) -> None:
        """Unload everything: idle models now, others when they are released. Nothing can be asked for after."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            while idle := [entry for entry in self._entries.values() if not entry.leases]:
                self._close(idle[0])

    def _ready(self, name: str) -> _Entry[Model] | None:
        """A lease's entry of a model that is loaded or that another thread loads; None: this thread must load it."""
        while True:
            self._check_open()
            if (entry := self._entries.get(name)) is not None:
                self._use(entry)
                return entry
            loading = self._loading
            if name in self._closing:
                self._changed.wait()
                continue
            if loading is None:
                self._loading = _Loading(name)
                return None
            if loading.name == name:
                return self._share(loading)
            self._changed.wait()

    def _share(self, loading: _Loading) -> _Entry[Model]:
        """Wait for a model that another thread loads; the lease is counted before the model can be unloaded again."""
        loading.waiting += 1
        try:
            while not loading.is_done:
                self._changed.wait()
        except BaseException:  # Ctrl-C while waiting
            loading.waiting -= 1
            if loading.entry is not None:
                self._release(loading.entry)
            raise
        if loading.error is not None:
            raise loading.error
        return loading.entry

    def _load(self, name: str) -> _Entry[Model]:
        """Make room for a model and load it; this thread is the one that loads."""
        loading = self._loading
        assert loading is not None and loading.name == name
        try:
            num_bytes = self._unlocked(self._size, name)
            self._make_room(name, num_bytes)
            loading.num_bytes = num_bytes
            model = self._unlocked(self._load_model, name)
        except BaseException as error:
            loading.error = error
            raise
        else:
            entry = _Entry(name, model, num_bytes, 1 + loading.waiting, self._clock(), self._keep_alive_s)
            loading.entry = self._entries[name] = entry
            return entry
        finally:
            self._loading = None
            self._changed.notify_all()

    def _make_room(self, name: str, num_bytes: int) -> None:
        """Unload idle models until `num_bytes` are free; none of them where that would not be enough."""
        while True:
            self._check_open()
            missing = num_bytes - (self._budget_bytes - self._taken())
            others = len(self._entries) + len(self._closing) + 1 - self._most
            if missing <= 0 and others <= 0:
                return
            # Those that are kept for ever go last.
            idle = sorted((e for e in self._entries.values() if not e.leases), key=lambda e: e.keep_alive_s is None)
            closing = sum(self._closing.values())
            if sum(entry.num_bytes for entry in idle) + closing < missing:
                raise self._no_room(name, num_bytes)
            if len(idle) + len(self._closing) < others:
                raise LimitError(
                    f"{name} cannot be loaded now: {self._most} models may be loaded, and all of them are in use.\n"
                    "Ask again when one is idle, or allow more at once.",
                    retry_after_s=_RETRY_S,
                )
            if missing > closing or others > len(self._closing):
                self._close(idle[0])
            else:
                self._changed.wait()

    def _no_room(self, name: str, num_bytes: int) -> CapacityError:
        used = [entry for entry in self._entries.values() if entry.leases]
        text = f"{name} needs {_gb(num_bytes)} of memory; the models of this process may take {_gb(self._budget_bytes)}"
        if num_bytes > self._budget_bytes or not used:
            hint = "Use a smaller format, a shorter context or fewer sequences, or give them more memory."
            return CapacityError(f"{text}.\n{hint}")
        in_use = sum(entry.num_bytes for entry in used)
        users = ", ".join(f"{e.name} {_gb(e.num_bytes)} by {_requests(e.leases)}" for e in used)
        return LimitError(
            f"{text}, of which {_gb(in_use)} are in use and {_gb(self._budget_bytes - in_use)} can be had: {users}.\n"
            "Ask again when they are done, or give the models more memory.",
            retry_after_s=_RETRY_S,
        )

    def _use(self, entry: _Entry[Model]) -> None:
        """Count one more lease, and note that it was used last."""
        entry.leases += 1
        self._touch(entry)

    def _touch(self, entry: _Entry[Model]) -> None:
        entry.last_used = self._clock()
        self._entries[entry.name] = self._entries.pop(entry.name)

    def _release(self, entry: _Entry[Model]) -> None:
        assert entry.leases > 0 and self._entries.get(entry.name) is entry
        entry.leases -= 1
        self._touch(entry)
        if not entry.leases and (self._is_closed or entry.keep_alive_s == 0):
            self._close(entry)
        else:
            self._changed.notify_all()

    def _close(self, entry: _Entry[Model]) -> None:
        """Take an idle model out and close it; the lock is free meanwhile."""
        assert not entry.leases
        del self._entries[entry.name]
        self._closing[entry.name] = entry.num_bytes
        try:
            self._unlocked(self._close_model, entry.model)
        finally:
            del self._closing[entry.name]
            self._changed.notify_all()

    def _unlocked(self, call: Callable[[Any], Any], argument: Any) -> Any:
        """Call something slow without the lock, which this thread holds once."""
        self._changed.release()
        try:
            return call(argument)
        finally:
            self._changed.acquire()

    def _taken(self) -> int:
        loading = self._loading.num_bytes if self._loading else 0
        return sum(entry.num_bytes for entry in self._entries.values()) + loading + sum(self._closing.values())

    def _check_open(self) -> None:
        if self._is_closed:
            raise CapacityError("this process is shutting down and loads no models any more.")


def _told(entry: _Entry) -> Hosted:
    return Hosted(
        name=entry.name,
        num_bytes=entry.num_bytes,
        leases=entry.leases,
        last_used=entry.last_used,
        expires_at=_expires_at(entry),
        keep_alive_s=entry.keep_alive_s,
    )


def _expires_at(entry: _Entry) -> float | None:
    return None if entry.leases or entry.keep_alive_s is None else entry.last_used + entry.keep_alive_s


def _requests(count: int) -> str:
    return f"{count} request{'s' if count > 1 else ''}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
