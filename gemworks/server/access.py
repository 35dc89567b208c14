"""Who may ask: the API key, and where there is none, which web pages and under which names."""

import re

from gemworks.errors import AccessError
from gemworks.server.asgi import App, Receive, Scope, Send, header, send_error
from gemworks.server.services import Services

# Served to anybody: the page asks for a key itself, and probes have none.
_OPEN = {"/", "/favicon.ico", "/health", "/health/live", "/health/ready"}
_OPEN_BELOW = ("/page/",)

# Pages of this machine, and of programs with pages of their own (desktop apps, editors), as Ollama lets them in.
LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?|(app|file|tauri|vscode-webview)://.*"


class Access:
    """Lets a request through with the caller that its key stands for."""

    def __init__(self, app: App, services: Services):
        self._app, self._keys = app, services.keys
        self._open = set(_OPEN) if services.settings.metrics.needs_key else {*_OPEN, "/metrics"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, with 401 where its key is not known."""
        path = scope.get("path", "")
        is_open = path in self._open or path.startswith(_OPEN_BELOW)
        if scope["type"] == "http" and self._keys is not None and not is_open:
            try:
                caller = self._keys.caller(_bearer(header(scope, b"authorization")))
            except AccessError as error:
                return await send_error(scope, send, error)
            scope["state"] |= {"caller": caller, "fair_key": caller.name}
            scope["state"]["record"].key = caller.name
        await self._app(scope, receive, send)


class Origins:
    """Where no key protects the server, refuses web pages that are not allowed, and names that are not ours.

    A page anywhere can post to 127.0.0.1 without asking first, and can make its own name mean 127.0.0.1 (DNS
    rebinding); both say so in Origin and Host. With keys a page has nothing to send, so nothing is refused.
    """

    def __init__(self, app: App, services: Services):
        settings = services.settings
        self._app = app
        self._is_on = services.keys is None
        self._any = "*" in settings.cors.origins
        self._origins = set(settings.cors.origins)
        self._loopback = re.compile(LOOPBACK_ORIGIN) if settings.cors.loopback else None
        # Bound to other addresses, any name may be this machine's.
        self._hosts = {"localhost", "127.0.0.1", "::1", *settings.hosts} if settings.is_loopback else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, with 403 where its page or the name it used is not allowed."""
        if scope["type"] == "http" and self._is_on:
            host, origin = header(scope, b"host"), header(scope, b"origin")
            if self._hosts is not None and host and _name(host) not in self._hosts:
                return await send_error(scope, send, _refused(f'the name "{_name(host):.80}"', "hosts"))
            if origin and origin.partition("://")[2] != host and not self._allows(origin):
                return await send_error(scope, send, _refused(f'pages of "{origin:.80}"', "cors.origins"))
        await self._app(scope, receive, send)

    def _allows(self, origin: str) -> bool:
        local = self._loopback is not None and self._loopback.fullmatch(origin) is not None
        return self._any or local or origin in self._origins


def _refused(what: str, setting: str) -> AccessError:
    return AccessError(f"this server does not answer {what}. Allow it with the setting {setting}.", forbidden=True)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower()


def _bearer(authorization: str) -> str | None:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
