"""The application: every API's routes, and errors in the shape of the API that was asked.

    middlewares (middleware.py) -> Direct: a dictionary of (method, path) -> the endpoint
                                      +-> FastAPI: paths with parameters, the page, the OpenAPI document

FastAPI's own way to an endpoint passes wrappers that our endpoints do not use, each a coroutine and a stack of contexts
that lives as long as a stream: 42 KB a waiting stream with them, 32 without (1,000 of them, CPython 3.11).
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

import gemworks
from gemworks.errors import GemworksError
from gemworks.server import health, ollama, openai, page
from gemworks.server.errors import HTTPError, http_error, status_error
from gemworks.server.middleware import add_middlewares
from gemworks.server.openai.stored import ResponseStore

if TYPE_CHECKING:
    from gemworks.server.host import ModelHost
    from gemworks.server.services import Services
    from gemworks.server.settings import Settings

Endpoint = Callable[[Request], Awaitable[Response]]

_APIS = (openai.router, ollama.router)


def create_app(settings: "Settings", host: "ModelHost", services: "Services") -> FastAPI:
    """Return the ASGI application. Its OpenAPI document is at /openapi.json."""
    # No docs pages: they load scripts from elsewhere. Bodies and spans are limited and told by our own middlewares.
    told: dict[str, Any] = {"docs_url": None, "redoc_url": None, "max_body_size": None, "telemetry": _NO_TELEMETRY}
    app = _App(title="Gemworks", version=gemworks.__version__, **told)
    app.state.settings, app.state.host, app.state.services = settings, host, services
    app.state.responses = ResponseStore()
    services.metrics.watch(lambda: [(one.name, one.llm.stats()) for one in host.loaded()])
    app.router.redirect_slashes = False  # a POST that is redirected loses its body in many clients
    app.add_exception_handler(GemworksError, _failed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failed)
    for router in (*_APIS, health.router, page.router):
        app.include_router(router)
    app.openapi = lambda: openai.document(app)  # type: ignore[method-assign]
    add_middlewares(app, settings, services)
    return app


_NO_TELEMETRY = {"tracing": False, "metrics": False}


class _App(FastAPI):
    """FastAPI behind Direct, and Direct behind the middlewares."""

    def build_middleware_stack(self) -> ASGIApp:
        added, self.user_middleware = self.user_middleware, []
        stack: ASGIApp = Direct(super().build_middleware_stack(), dict(_endpoints(_APIS)))
        self.user_middleware = added
        for kind, arguments, named in reversed(added):
            stack = kind(stack, *arguments, **named)
        return stack


class Direct:
    """Calls the endpoint of a fixed path; everything else goes on to `app`."""

    def __init__(self, app: ASGIApp, endpoints: dict[tuple[str, str], Endpoint]):
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        endpoint = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            return await self._app(scope, receive, send)
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except GemworksError as error:
            response = await _failed(request, error)
        await response(scope, receive, send)


def _endpoints(routers: tuple[APIRouter, ...]) -> Iterator[tuple[tuple[str, str], Endpoint]]:
    """The endpoints that take a request and have a fixed path, of routers and those they include."""
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute):
                if "{" not in route.path:
                    yield from (((method, route.path), route.endpoint) for method in route.methods or ())
            elif (inner := getattr(route, "original_router", None)) is not None:
                yield from _endpoints((inner,))


async def _failed(request: Request, error: Exception) -> Response:
    draining = request.app.state.services.calls.draining
    request_id = getattr(request.state, "id", "")
    return _response(http_error(error, request.url.path, request_id=request_id, draining=draining))


async def _left(request: Request, error: Exception) -> Response:
    """The client went while it sent its body: nobody reads this. Requests takes what Direct's endpoints raise."""
    return Response(status_code=499)


async def _refused(request: Request, error: Any) -> Response:
    path = request.url.path
    told = {
        404: f"No such path: {request.method} {path[:200]}.",
        405: f"{path[:200]} does not take {request.method}.",
    }
    made = status_error(error.status_code, told.get(error.status_code, str(error.detail)), path)
    return _response(made._replace(headers=dict(error.headers or {})))


def _response(error: HTTPError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)
