"""The models of one server, by name: loaded when first asked for, held while they are used, let go when they are not.

    asked ---load in a thread---> loaded, users > 0 ---last user leaves---> idle ---keep_alive passes---> gone

An event loop's side of engine/host.py, which keeps the counts, the budget of bytes and who has to go. Names are those
of the command line and, where any_local allows it, of every model on this machine; never a path, and nothing is
downloaded. What loads a model is handed in, so that this needs no jax.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gemworks.engine.host import Hosted, Lease
from gemworks.engine.host import ModelHost as EngineHost
from gemworks.errors import NotFoundError, RequestError
from gemworks.memory import give_back_freed_memory
from gemworks.server.threads import in_daemon
from gemworks.weights import hub, store

if TYPE_CHECKING:
    from gemworks.llm import LLM
    from gemworks.server.settings import ModelSettings

_NAME = re.compile(r"[\w.:/@+-]{1,200}")

# Seconds that mean "at once" without closing the model in the event loop, as 0 would.
_AT_ONCE_S = 1e-6


@dataclass(eq=False, slots=True)
class Loaded:
    """A model that was loaded. Times are of time.time(); `hosted` tells what its host knows of it, None when gone.

    size_bytes: of its weights on disk.
    """

    name: str
    llm: "LLM"
    path: Path
    size_bytes: int
    hosted: Callable[[str], Hosted | None] = field(repr=False)
    loaded_at: float = field(default_factory=time.time)

    @property
    def users(self) -> int:
        """Calls that hold it now."""
        told = self.hosted(self.name)
        return told.leases if told else 0

    @property
    def keep_alive_s(self) -> float:
        """Seconds it stays after the last use; inf: for ever."""
        told = self.hosted(self.name)
        return 0.0 if told is None else math.inf if told.keep_alive_s is None else told.keep_alive_s

    @property
    def expires_at(self) -> float | None:
        """When it goes; None: not while it is used, or never."""
        told = self.hosted(self.name)
        if told is None or told.expires_at is None:
            return None
        return time.time() + told.expires_at - time.monotonic()


class ModelHost:
    """Loads and lets go of models. For one event loop.

    load: a name of this machine -> the model; called in a thread. Raises what it raises. size: the bytes it will take,
    asked where settings.memory_bytes limits them (None: its weights as they are on disk).
    """

    def __init__(
        self,
        settings: "ModelSettings",
        *,
        load: "Callable[[str], LLM] | None" = None,
        size: Callable[[str], int] | None = None,
    ):
        self._settings = settings
        self._load = load
        self._served = list(dict.fromkeys(settings.names))
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, str] = {}  # what was asked -> the name it is held under
        self._timer: asyncio.TimerHandle | None = None
        self._expiring: asyncio.Task[None] | None = None
        self._models: dict[str, Loaded] = {}  # in the order they were loaded
        limit = settings.memory_bytes
        self._host: EngineHost[Loaded] = EngineHost(
            limit,
            self._read,
            size=(size or _size_on_disk) if limit is not None else lambda name: 0,
            most=max(1, settings.max_loaded, len(self._served)),
            close=self._close,
        )

    @property
    def default(self) -> str:
        """The model of requests that name none: the first of the command line."""
        if not self._served:
            raise RequestError("model must be given: this server was started without one to answer by default.")
        return self._served[0]

    def served(self) -> list[str]:
        """Return the names of the command line."""
        return list(self._served)

    def loaded(self) -> list[Loaded]:
        """Return the models in memory, as they were loaded."""
        there = {told.name for told in self._host.models()}  # what is loading is not there yet
        return [loaded for name, loaded in list(self._models.items()) if name in there]

    def peek(self, name: str) -> Loaded | None:
        """Return a model if it is in memory, without using it."""
        held = self.resolve(name)
        return self._models.get(held) if self._host.model(held) is not None else None

    def resolve(self, name: str) -> str:
        """Return the name a model is held under. Raises NotFoundError for what is no model of this machine."""
        known = self._known.get(name)
        if known is not None and (known in self._served or self._host.model(known) is not None):
            return known
        for wanted in dict.fromkeys((name, name.removesuffix(":latest"))):
            if wanted in self._served or any(_same(wanted, served) for served in self._served):
                found = next(served for served in self._served if served == wanted or _same(wanted, served))
                self._known[name] = found
                return found
        if self._settings.any_local and (local := _local(name)) is not None:
            self._known[name] = local
            return local
        raise NotFoundError(self._not_found(name))

    @asynccontextmanager
    async def use(self, name: str | None, *, keep_alive: float | None = None) -> AsyncIterator[Loaded]:
        """Hold a model loaded inside the context.

        keep_alive: seconds it stays after the last use, -1 for ever; None as it was asked before, or as the settings
        say. Raises NotFoundError, LimitError where what is in use leaves no room, CapacityError where there is none.
        """
        held = self.resolve(name or self.default)
        lease = await self._get(held, keep_alive)
        try:
            yield lease.model
        finally:
            lease.release()
            self._schedule()

    async def unload(self, name: str) -> bool:
        """Let a model go, when its last user leaves; False where it is not loaded."""
        if not self._host.keep(self.resolve(name), _AT_ONCE_S):
            return False
        await self._expire()
        return True

    async def close(self) -> None:
        """Let every model go."""
        for task in (*self._loading.values(), *([self._expiring] if self._expiring else [])):
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._host.close)

    async def _get(self, name: str, keep_alive: float | None) -> Lease[Loaded]:
        """A lease on the model, loaded now where it is not; who asks meanwhile shares the load."""
        while True:
            told = self._host.model(name)
            keep_s = told.keep_alive_s if told and keep_alive is None else self._keep_s(name, keep_alive)
            if (lease := self._host.lend(name, keep_alive_s=keep_s)) is not None:
                return lease
            task = self._loading.get(name)
            if task is None:
                task = self._loading[name] = asyncio.ensure_future(in_daemon(self._bring, name))
                task.add_done_callback(lambda done: self._loaded_or_not(name, done))
            await asyncio.shield(task)  # one who leaves does not end the load of the others
            self._schedule()

    def _keep_s(self, name: str, keep_alive: float | None) -> float | None:
        """Seconds as the engine's host takes them: None is for ever, and 0 would close a model in this thread."""
        if keep_alive is None:
            keep_alive = -1.0 if name in self._served else self._settings.keep_alive_s
        return None if keep_alive < 0 or math.isinf(keep_alive) else max(keep_alive, _AT_ONCE_S)

    def _bring(self, name: str) -> None:
        """Load a model, in a thread; whoever asked for it takes it from there."""
        self._host.get(name, keep_alive_s=self._keep_s(name, None)).release()

    def _read(self, name: str) -> Loaded:
        assert self._load is not None, "a host without a loader has its models given"
        llm = self._load(name)
        path = hub.resolve(name).path
        loaded = Loaded(name, llm, path, store.weight_file_bytes(path), self._host.model)
        self._models[name] = loaded
        return loaded

    def _close(self, loaded: Loaded) -> None:
        self._models.pop(loaded.name, None)  # the last reference to its weights
        loaded.llm.close()
        give_back_freed_memory()

    def _loaded_or_not(self, name: str, task: "asyncio.Task[None]") -> None:
        self._loading.pop(name, None)
        if not task.cancelled():
            task.exception()  # told to whoever waits; perhaps nobody does any more

    def _schedule(self) -> None:
        """Look again when the next idle model's time has passed."""
        if self._timer is not None:
            self._timer.cancel()
        ends = [told.expires_at for told in self._host.models() if told.expires_at is not None]
        if ends:
            after = max(0.0, min(ends) - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(after, self._begin_expiring)

    def _begin_expiring(self) -> None:
        self._expiring = asyncio.ensure_future(self._expire())

    async def _expire(self) -> None:
        await asyncio.to_thread(self._host.expire)
        self._schedule()

    def _not_found(self, name: str) -> str:
        known = ", ".join(self._served) or "none"
        return (
            f"model {name[:200]!r} not found: it is not on this machine, or not served. Served by name: {known}.\n"
            f"Fetch it with `gemworks pull`, or start the server with it."
        )


def _same(one: str, other: str) -> bool:
    """Whether two names mean one repository: gemma3:1b is google/gemma-3-1b-it."""
    if _is_path(one) or _is_path(other):
        return False
    mine, theirs = hub.repository_of(one), hub.repository_of(other)
    return mine is not None and mine == theirs


def _local(name: str) -> str | None:
    """The name of a model of this machine as `hub.resolve` takes it, None where there is none; never a path."""
    wanted = name.removesuffix(":latest")
    if _NAME.fullmatch(wanted) is None or _is_path(wanted):
        return None
    if wanted == "tiny" or store.created_exists(wanted):
        return wanted
    repository = hub.repository_of(wanted)
    return wanted if repository is not None and hub.pulled(repository) is not None else None


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or "\\" in name or ".." in name or name.endswith(".gguf")


def _size_on_disk(name: str) -> int:
    return store.weight_file_bytes(hub.resolve(name).path)
