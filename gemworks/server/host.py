"""The models of one server, by name: loaded when first asked for, held while they are used, let go when they are not.

    asked ---load in a thread---> loaded, users > 0 ---last user leaves---> idle ---keep_alive passes---> gone

Names are those of the command line and, where any_local allows it, of every model on this machine; never a path, and
nothing is downloaded. What loads a model is handed in, so that this needs no jax.
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

from gemworks.errors import LimitError, NotFoundError, RequestError
from gemworks.memory import give_back_freed_memory
from gemworks.server.threads import in_daemon
from gemworks.weights import hub, store

if TYPE_CHECKING:
    from gemworks.llm import LLM
    from gemworks.server.settings import ModelSettings

_NAME = re.compile(r"[\w.:/@+-]{1,200}")
_ENDS = (".safetensors", ".gguf")
_RETRY_S = 5.0  # an answer takes seconds, and ends the use of a model


@dataclass(eq=False, slots=True)
class Loaded:
    """A model that is loaded. Times are of time.time(); expires_at None: not while it is used, or never."""

    name: str
    llm: "LLM"
    path: Path
    size_bytes: int
    keep_alive_s: float  # after the last use; inf: for ever
    loaded_at: float = field(default_factory=time.time)
    used_at: float = field(default_factory=time.time)
    expires_at: float | None = None
    users: int = 0
    timer: asyncio.TimerHandle | None = None


class ModelHost:
    """Loads and lets go of models. For one event loop.

    load: a name of this machine -> the model; called in a thread. Raises what it raises.
    """

    def __init__(self, settings: "ModelSettings", *, load: "Callable[[str], LLM] | None" = None):
        self._settings = settings
        self._load = load
        self._served = list(dict.fromkeys(settings.names))
        self._loaded: dict[str, Loaded] = {}
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._known: dict[str, str] = {}  # what was asked -> the name it is held under

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
        return list(self._loaded.values())

    def peek(self, name: str) -> Loaded | None:
        """Return a model if it is in memory, without using it."""
        return self._loaded.get(self.resolve(name))

    def resolve(self, name: str) -> str:
        """Return the name a model is held under. Raises NotFoundError for what is no model of this machine."""
        known = self._known.get(name)
        if known is not None and known in (*self._served, *self._loaded):
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

        keep_alive: seconds it stays after the last use, -1 for ever; None as the settings say. Raises NotFoundError,
        and LimitError where as many models as may be loaded are all in use.
        """
        held = self.resolve(name or self.default)
        loaded = await self._get(held)
        loaded.users += 1
        if loaded.timer is not None:
            loaded.timer.cancel()
        loaded.timer, loaded.expires_at = None, None
        if keep_alive is not None:
            loaded.keep_alive_s = math.inf if keep_alive < 0 else keep_alive
        try:
            yield loaded
        finally:
            loaded.users -= 1
            loaded.used_at = time.time()
            if loaded.users == 0:
                self._let_expire(loaded)

    async def unload(self, name: str) -> bool:
        """Let a model go, when its last user leaves; False where it is not loaded."""
        loaded = self._loaded.get(self.resolve(name))
        if loaded is None:
            return False
        loaded.keep_alive_s = 0.0
        if loaded.users == 0:
            await self._drop(loaded)
        return True

    async def close(self) -> None:
        """Let every model go."""
        for task in list(self._loading.values()):
            task.cancel()
        for loaded in list(self._loaded.values()):
            await self._drop(loaded)

    async def _get(self, name: str) -> Loaded:
        """The model, loaded now where it is not; who asks meanwhile shares the load."""
        while (loaded := self._loaded.get(name)) is None:
            task = self._loading.get(name)
            if task is None:
                task = self._loading[name] = asyncio.ensure_future(self._read(name))
                task.add_done_callback(lambda done: self._loading.pop(name, None))
            await asyncio.shield(task)  # one who leaves does not end the load of the others
        return loaded

    async def _read(self, name: str) -> Loaded:
        await self._make_room(name)
        assert self._load is not None, "a host without a loader has its models given"
        llm = await in_daemon(self._load, name)
        path = await asyncio.to_thread(lambda: hub.resolve(name).path)
        keep_s = math.inf if name in self._served else _seconds(self._settings.keep_alive_s)
        loaded = Loaded(name, llm, path, _size(path), keep_s)
        self._loaded[name] = loaded
        if loaded.users == 0:
            self._let_expire(loaded)
        return loaded

    async def _make_room(self, name: str) -> None:
        """Let the idle model go that was used longest ago, where this one would be one too many."""
        most = max(1, self._settings.max_loaded or 1, len(self._served))
        others = [one for one in self._loading if one != name]
        while len(self._loaded) + len(others) >= most:
            idle = [loaded for loaded in self._loaded.values() if loaded.users == 0]
            if not idle:
                raise LimitError(
                    f"{name} cannot be loaded now: {most} models may be loaded, and all of them are in use.\n"
                    "Try again when one is idle, or raise max_loaded.",
                    retry_after_s=_RETRY_S,
                )
            await self._drop(min(idle, key=lambda loaded: (loaded.name in self._served, loaded.used_at)))

    def _let_expire(self, loaded: Loaded) -> None:
        if math.isinf(loaded.keep_alive_s):
            return
        loop = asyncio.get_running_loop()
        loaded.expires_at = time.time() + loaded.keep_alive_s
        if loaded.timer is not None:
            loaded.timer.cancel()
        loaded.timer = loop.call_later(loaded.keep_alive_s, lambda: asyncio.ensure_future(self._expire(loaded)))

    async def _expire(self, loaded: Loaded) -> None:
        if loaded.users == 0 and self._loaded.get(loaded.name) is loaded:
            await self._drop(loaded)

    async def _drop(self, loaded: Loaded) -> None:
        if loaded.timer is not None:
            loaded.timer.cancel()
        if self._loaded.get(loaded.name) is loaded:
            del self._loaded[loaded.name]
        await asyncio.to_thread(_close, loaded)

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


def _seconds(keep_alive_s: float) -> float:
    return math.inf if keep_alive_s < 0 else keep_alive_s


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.iterdir()
    return sum(file.stat().st_size for file in files if file.suffix in _ENDS)


def _close(loaded: Loaded) -> None:
    loaded.llm.close()
    give_back_freed_memory()
