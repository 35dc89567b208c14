"""Several replicas of a server behind one address, as a Ray Serve application (the extra `ray`).

    client -> front (one a node) -> the replica that has the prompt's beginning in its cache, unless it is overloaded
                                 -> another one, where that died before the answer had begun

A replica is a whole server without its socket: the same application, called through an actor. A request that has not
begun to stream when its replica dies is sent to another one, up to ATTEMPTS times; one that has begun ends with an
error piece: its client has half of an answer already, which sampling would not write again.

Each replica for itself: key limits, usage, metrics, the answers that /v1/responses keeps. Ray is an extra, so it is
imported inside functions.
"""

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from gemworks.errors import BackendError
from gemworks.server.prefixes import prefix_keys

if TYPE_CHECKING:
    from gemworks.llm import LLM
    from gemworks.server.settings import Settings

ATTEMPTS = 4
_MOST_REQUESTS = 512  # that one replica is sent; its own queue refuses with 429 before

_ROUTER = "gemworks.server.ray_router.PrefixRouter"
_STREAMS = ("text/event-stream", "application/x-ndjson")
_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"proxy-authorization"}

_log = logging.getLogger("ray.serve")

Load = Callable[["Settings"], Callable[[str], "LLM"]]


class Replica:
    """A server without a socket. `load` makes the function that loads models, in the replica's process."""

    async def __init__(self, settings: "Settings", load: Load):  # type: ignore[misc]  # Ray awaits it
        from gemworks.server.app import create_app
        from gemworks.server.host import ModelHost
        from gemworks.server.services import Services

        self._services = Services(settings)
        self._host = ModelHost(settings.models, load=load(settings))
        self._app = create_app(settings, self._host, self._services)
        for name in settings.models.names:
            async with self._host.use(name) as loaded:
                if settings.models.warm_up:
                    await asyncio.to_thread(loaded.llm.warm_up)
        self._services.is_ready = True

    async def answer(
        self, scope: dict[str, Any], body: bytes, *, prefix: Sequence[bytes] = ()
    ) -> AsyncGenerator[Any, None]:
        """Yield (status, headers), then the pieces of the body. Closing it ends the request, as a client that leaves.

        prefix: prefix_keys of the body, which the router has read on the way.
        """
        # Two pieces ahead of whoever reads: back-pressure reaches the engine's stream.
        pieces: asyncio.Queue[Any] = asyncio.Queue(maxsize=2)
        gone = asyncio.Event()
        has_body = True

        async def receive() -> dict[str, Any]:
            nonlocal has_body
            if has_body:
                has_body = False
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.create_task(self._app(scope, receive, pieces.put))
        try:
            is_open = True
            while is_open:
                message = await _next(pieces, work)
                if message["type"] == "http.response.start":
                    yield message["status"], [(bytes(k), bytes(v)) for k, v in message.get("headers", ())]
                else:
                    is_open = message.get("more_body", False)
                    if message.get("body"):
                        yield message["body"]
        finally:
            gone.set()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def stats(self) -> dict[str, Any]:
        """Return this process's id and what its engine counted, for tests and for whoever wonders."""
        import os

        engines = {one.name: dataclasses.asdict(one.llm.stats()) for one in self._host.loaded()}
        return {"pid": os.getpid(), "engines": engines}

    def check_health(self) -> None:
        """Raise where the replica should be replaced. Ray asks every ten seconds."""
        if not self._services.is_ready:
            raise BackendError("the models of this replica are not loaded")


async def _next(pieces: "asyncio.Queue[Any]", work: "asyncio.Task[None]") -> Any:
    """The next message of the application; what it raised, where it ended before saying the last one."""
    if not pieces.empty():
        return pieces.get_nowait()
    getting = asyncio.ensure_future(pieces.get())
    await asyncio.wait({getting, work}, return_when=asyncio.FIRST_COMPLETED)
    if getting.done():
        return getting.result()
    getting.cancel()
    work.result()
    return {"type": "http.response.body", "body": b"", "more_body": False}


class Front:
    """The address: reads a request, hands it to a replica, passes the answer on as it comes.

    ask(scope, body, keys) is the call of a replica; an async generator as `Replica.answer`. `is_death` says whether
    what it raised means that the replica is gone.
    """

    def __init__(self, ask: Callable[..., Any], is_death: Callable[[BaseException], bool]):
        self._ask, self._is_death = ask, is_death

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        body = await _read(receive)
        if body is None:
            return
        kept = _plain(scope)
        passing = asyncio.ensure_future(self._pass_on(kept, body, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            for task in (passing, leaving):
                task.cancel()
            await asyncio.gather(passing, leaving, return_exceptions=True)

    async def _pass_on(self, scope: dict[str, Any], body: bytes, send: Callable) -> None:
        keys = prefix_keys(body)
        for attempt in range(1, ATTEMPTS + 1):
            answer = self._ask(scope, body, keys)
            head, has_begun = None, False
            try:
                async for piece in answer:
                    if head is None:
                        head = piece
                        continue
                    if not has_begun:
                        await send({"type": "http.response.start", "status": head[0], "headers": head[1]})
                        has_begun = True
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if not has_begun and head is not None:
                    await send({"type": "http.response.start", "status": head[0], "headers": head[1]})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            except Exception as error:
                if not self._is_death(error):
                    raise
                _log.warning("a replica died under a request (attempt %d): %s", attempt, type(error).__name__)
                if has_begun:
                    await _break_off(send, head)
                    return
            finally:
                await _close(answer)
        await _refuse(send)


async def _read(receive: Callable) -> bytes | None:
    """The body of a request; None where its client left before it was whole."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _left(receive: Callable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _plain(scope: dict[str, Any]) -> dict[str, Any]:
    """What of a request goes to another process: Ray's own objects in the scope stay here."""
    names = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
    headers = [(bytes(k), bytes(v)) for k, v in scope.get("headers", ()) if k.lower() not in _HOP]
    return {name: scope[name] for name in names if name in scope} | {"headers": headers, "root_path": "", "asgi": {}}


async def _break_off(send: Callable, head: Any) -> None:
    """End an answer that has begun: with an error piece where it is a stream, then the connection is closed."""
    kind = next((value for name, value in head[1] if name.lower() == b"content-type"), b"").decode("latin-1")
    told = "the replica that wrote this answer is gone. Send the request again."
    if kind.startswith(_STREAMS[0]):
        error = {"error": {"message": told, "type": "server_error", "param": None, "code": "replica_lost"}}
        await send({"type": "http.response.body", "body": f"data: {json.dumps(error)}\n\n".encode(), "more_body": True})
    elif kind.startswith(_STREAMS[1]):
        await send(
            {"type": "http.response.body", "body": f"{json.dumps({'error': told})}\n".encode(), "more_body": True}
        )
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(send: Callable) -> None:
    told = f"{ATTEMPTS} replicas died under this request. Try again in a moment."
    body = json.dumps(
        {"error": {"message": told, "type": "server_error", "param": None, "code": "no_replica"}}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"5")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _close(answer: Any) -> None:
    """End a replica's work on an answer that nobody reads; nothing to do where it has ended."""
    cancel = getattr(answer, "cancel", None)
    if cancel is not None:
        cancel()
    elif hasattr(answer, "aclose"):
        await answer.aclose()


def build(settings: "Settings", load: Load, *, replicas: int = 2, cpus: float = 1.0, gpus: float = 0.0) -> Any:
    """Return the Ray Serve application of `replicas` servers, each with `cpus` cores and `gpus` GPUs.

    load: settings -> the function that loads a model by name; pickled by name. `serve.run` or `serve run` deploys it.
    """
    from ray import serve  # pyright: ignore[reportMissingImports]
    from ray.serve.config import RequestRouterConfig  # pyright: ignore[reportMissingImports]

    deployed = serve.deployment(
        Replica,
        name="replica",
        num_replicas=replicas,
        max_ongoing_requests=_MOST_REQUESTS,
        graceful_shutdown_timeout_s=settings.grace_s,
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": {"GEMWORKS_THREADS": str(max(1, int(cpus)))}},
        },
        # By name: Ray imports it in processes of its own.
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),  # pyright: ignore
    )
    front = serve.deployment(
        serve.ingress(_front_app)(_FrontDeployment),
        name="front",
        max_ongoing_requests=10 * _MOST_REQUESTS,
        ray_actor_options={"num_cpus": 0.1},
    )
    return front.bind(deployed.bind(settings, load))


_fronts: list[Front] = []  # of this process: its deployment's


class _FrontDeployment:
    """The deployment of a Front: one a process."""

    def __init__(self, replica: Any):
        _fronts[:] = [Front(_asker(replica), is_death)]


def _front_app() -> Front:
    """Ray asks for the ASGI application after the deployment's constructor has run."""
    return _fronts[0]


def _asker(replica: Any) -> Callable[..., Any]:
    handle = replica.options(stream=True)
    return lambda scope, body, keys: handle.answer.remote(scope, body, prefix=keys)


def is_death(error: BaseException) -> bool:
    """Whether what a call of a replica raised means that it is gone, or going."""
    from ray import exceptions  # pyright: ignore[reportMissingImports]
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError  # pyright: ignore[reportMissingImports]

    return isinstance(error, exceptions.RayActorError | DeploymentUnavailableError | ReplicaUnavailableError)
