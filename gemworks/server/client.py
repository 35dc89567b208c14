"""Talking to a running server from the command line: where it is, one request, and one clear error where none runs.

The standard library alone: `gemworks ps` starts at once.
"""

import http.client
import json
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gemworks import env
from gemworks.errors import AccessError, BackendError, ConfigError, NotFoundError

DEFAULT_PORT = 11434
_TIMEOUT_S = 30.0
_SHOWN = 500


class Address(NamedTuple):
    """Where a server is. path: what stands before /api, "" or "/gemworks" behind a proxy."""

    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def address(text: str | None = None) -> Address:
    """Return the address that `text` (default: GEMWORKS_HOST) means: a host, host:port, or a whole URL.

    Nothing is 127.0.0.1:11434. Raises ConfigError.
    """
    text = (env.server_address() or "") if text is None else text
    url = text if "://" in text else f"http://{text}"
    if text.count(":") > 1 and "://" not in text and not text.startswith("["):  # an IPv6 address without brackets
        url = f"http://[{text}]"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad(text) from error
    if parts.scheme not in ("http", "https") or parts.query or parts.fragment or " " in text:
        raise _bad(text)
    # As in Ollama a whole URL without a port has its scheme's, and 0.0.0.0 is where a server listens and nobody lives.
    default = {"http://": 80, "https://": 443}.get(text[: text.find("://") + 3], DEFAULT_PORT)
    host = parts.hostname or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return Address(parts.scheme, host, port or default, parts.path.rstrip("/"))


def ask(method: str, path: str, body: Any = None) -> Any:
    """Return what the server answers, as JSON. Raises BackendError where none runs, and what the server says."""
    where = address()
    data = None if body is None else json.dumps(body).encode()
    headers = {"User-Agent": "gemworks", "Accept": "application/json"}
    if data is not None:
        headers["Content-Type"] = "application/json"
    if key := env.api_key():
        headers["Authorization"] = f"Bearer {key}"
    connection = _connection(where)
    try:
        connection.request(method, where.path + path, data, headers)
        with connection.getresponse() as response:  # which has the socket where the server closes it
            status, text = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BackendError(_no_server(where, error)) from error
    finally:
        connection.close()
    return _read(where, status, text)


def _connection(where: Address) -> http.client.HTTPConnection:
    if where.scheme == "http":
        return http.client.HTTPConnection(where.host, where.port, timeout=_TIMEOUT_S)
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(where.host, where.port, timeout=_TIMEOUT_S, context=context)


def _read(where: Address, status: int, text: bytes) -> Any:
    try:
        told = json.loads(text or b"{}")
    except ValueError:
        told = None
    if status < 400 and told is not None:
        return told
    said = told.get("error") if isinstance(told, dict) else None
    if isinstance(said, str):
        if status == 404:
            raise NotFoundError(said)
        if status in (401, 403):
            hint = "\nSet GEMWORKS_API_KEY to a key of this server." if status == 401 else ""
            raise AccessError(said + hint, forbidden=status == 403)
        raise BackendError(f"{where} answered {status}: {said}")
    raise BackendError(
        f"{where} answered {status}, and not as a Gemworks server does: {text[:_SHOWN].decode(errors='replace')!r}.\n"
        "Set GEMWORKS_HOST to where the server is, as in 127.0.0.1:11434."
    )


def _no_server(where: Address, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return (
        f"no server answers at {where} ({reason}).\n"
        "Start one with: gemworks serve MODEL\n"
        "Or set GEMWORKS_HOST to where one runs."
    )


def _bad(text: str) -> ConfigError:
    return ConfigError(
        f'GEMWORKS_HOST must be a host, host:port or an address that begins with http:// or https://, got "{text}".'
    )
