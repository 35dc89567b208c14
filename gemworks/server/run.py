"""One server process from start to end: socket, models, requests, draining.

    bind -> accept (live, not ready) -> load and warm up -> "Listening on ..." -> serve -> SIGTERM -> drain -> return

It accepts connections from the start, so that a supervisor's liveness probe is answered while weights load. SIGTERM or
Ctrl-C stops admission: what runs may finish within the grace period, what comes is told 503, and then the process ends
with status 0. A second signal ends it at once.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import uvicorn

from gemworks.errors import BackendError, ConfigError
from gemworks.server.app import create_app
from gemworks.server.host import ModelHost
from gemworks.server.protocol import with_timeout
from gemworks.server.services import Services
from gemworks.server.settings import Settings
from gemworks.server.threads import in_daemon
from gemworks.text import grammar

if TYPE_CHECKING:
    from gemworks.llm import LLM

# The engine's thread and the event loop share the interpreter: with Python's 5 ms a token would often wait that long
# to be sent.
_SWITCH_S = 0.0005
_BACKLOG = 2048
_STOPS = (signal.SIGTERM, signal.SIGINT)


def run(
    settings: Settings,
    *,
    load: "Callable[[str], LLM]",
    announce: Callable[[str], None],
    warm: "Callable[[str, LLM], None] | None" = None,
    size: Callable[[str], int] | None = None,
) -> None:
    """Serve until a signal ends it, and return when all is closed.

    load: a model's name -> the model, called in a thread. warm: called in one instead of `LLM.warm_up`. size: bytes a
    model will take (host.py). announce: one line for whoever started the server. Raises ConfigError where the address
    cannot be had, and what `load` raises for a model of the settings.
    """
    bound = bind(settings.host, settings.port)
    sys.setswitchinterval(_SWITCH_S)
    services = Services(settings)
    services.logs.capture()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            host = ModelHost(settings.models, load=load, size=size)
            runner.run(_serve(settings, bound, services, host, announce, warm or _warm))
    finally:
        bound.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, not yet listening. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as undo:
            bound = undo.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            undo.pop_all()
    except OSError as error:
        raise ConfigError(
            f"the server must be able to listen on {host}:{port}, got: {error.strerror or error}.\n"
            "Another server may be there already; choose another --port, or 0 for a free one."
        ) from error
    return bound


def address_of(bound: socket.socket, *, tls: bool) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its own idea of signals: it would close the door before what runs has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    settings: Settings,
    bound: socket.socket,
    services: Services,
    host: ModelHost,
    announce: Callable[[str], None],
    warm: "Callable[[str, LLM], None]",
) -> None:
    app = create_app(settings, host, services)
    server = _Server(_config(settings, app))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for stop in _STOPS:
        loop.add_signal_handler(stop, _on_signal, stopping, server)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    stopped = asyncio.create_task(stopping.wait())
    try:
        loading = asyncio.create_task(_load_all(settings, host, services, warm))
        await asyncio.wait({loading, serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()  # raises what a model's load raised
            announce(f"Listening on {address_of(bound, tls=settings.tls.is_on)}")
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        else:
            loading.cancel()
        await _drain(services, settings.grace_s, serving)
    finally:
        server.should_exit = True
        await asyncio.wait({serving})
        stopped.cancel()
        await host.close()
        services.close()


def _config(settings: Settings, app) -> uvicorn.Config:
    tls = settings.tls
    return uvicorn.Config(
        app,
        http=with_timeout(settings.limits.header_timeout_s),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=int(settings.limits.idle_s),
        timeout_graceful_shutdown=1,  # what the grace period left is over
        ssl_certfile=tls.certificate,
        ssl_keyfile=tls.key,
    )


async def _load_all(
    settings: Settings, host: ModelHost, services: Services, warm: "Callable[[str, LLM], None]"
) -> None:
    """Load the models of the settings, the first one first."""
    for name in settings.models.names:
        async with host.use(name) as loaded:
            if settings.models.warm_up:
                await in_daemon(warm, name, loaded.llm)
                await in_daemon(form_once, loaded.llm)
                if settings.models.warm_up_images:
                    await in_daemon(see_once, loaded.llm)
    services.is_ready = True


def _warm(name: str, llm: "LLM") -> None:
    llm.warm_up()


def form_once(llm: "LLM") -> None:
    """Prepare one call with a form: the vocabulary is read, which takes a second for Gemma 3's 262,144 pieces."""
    with contextlib.suppress(BackendError):  # without llguidance no answer has a form, and a request is told so
        llm.prepare("a", grammar=grammar.choice(["a"]))


def see_once(llm: "LLM") -> None:
    """Answer one token about a grey picture: the tower is loaded and compiled, and a step with image tokens too.

    Nothing for a model that reads text only, or whose context no image fits.
    """
    if llm.eyes is None or llm.context < 2 * llm.eyes.config.tokens_per_image:
        return
    parts = [{"type": "image", "image": np.full((64, 64, 3), 128, np.uint8)}, {"type": "text", "text": "?"}]
    llm.chat([{"role": "user", "content": parts}], max_tokens=1, use_cache=False)


async def _drain(services: Services, grace_s: float, serving: "asyncio.Task[None]") -> None:
    """Let what runs finish, while what comes is refused."""
    services.is_ready = False
    services.calls.drain()
    idle = asyncio.create_task(services.calls.idle())
    await asyncio.wait({idle, serving}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()


def _on_signal(stopping: asyncio.Event, server: uvicorn.Server) -> None:
    if stopping.is_set():
        server.should_exit = server.force_exit = True
    stopping.set()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: half the processor time of a token sent."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
