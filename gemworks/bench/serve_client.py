"""A client of /v1/completions that streams, and costs little: it shares the machine with the server it measures.

One connection, kept open, HTTP/1.1 with chunks read by hand. Events are parsed up to the first with text, and the last,
which has the counts; those between are split and dropped.
"""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from gemworks.bench.engine_load import Timer
from gemworks.errors import BackendError

PATH = "/v1/completions"
_DONE = b"data: [DONE]"


@dataclass(slots=True)
class Answered:
    """What came of one request: when it was sent, when its first text and its last event came, and the counts."""

    sent_s: float
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0
    status: int = 0
    error: str = ""
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from sending to the first text."""
        return None if self.first_s is None else self.first_s - self.sent_s


class Connection:
    """One kept connection to a server; requests go one after the other. Use it in an `async with`."""

    def __init__(self, host: str, port: int, timer: Timer, *, token: str | None = None):
        self._address, self._timer, self._token = (host, port), timer, token
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> "Connection":
        await self._open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._close()

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._address)

    async def _close(self) -> None:
        assert self._writer is not None
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def send(self, body: dict[str, Any]) -> None:
        """Send one request and wait for nothing."""
        assert self._writer is not None
        payload = json.dumps(body).encode()
        key = f"Authorization: Bearer {self._token}\r\n" if self._token else ""
        host, port = self._address
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\n{key}Content-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        await self._writer.drain()

    async def ask(self, body: dict[str, Any]) -> Answered:
        """Send one streaming request and read its answer to the end. A refusal is in the answer, not raised."""
        answer = Answered(sent_s=self._timer.now())
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        try:
            await self.send(body)
            answer.status, headers = await self._head()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if getattr(error, "partial", b""):
                raise BackendError("a server hung up in the head of its answer") from error
            # llama-server promises to keep the connection and closes it after each answer. A request more is no matter.
            await self._close()
            await self._open()
            answer.sent_s = self._timer.now()
            await self.send(body)
            answer.status, headers = await self._head()
        if headers.get("transfer-encoding") != "chunked":
            assert self._reader is not None
            answer.error = (await self._reader.readexactly(int(headers.get("content-length", 0)))).decode()
            return answer
        await self._events(answer)
        answer.last_s = self._timer.now()
        answer.tokens = answer.usage.get("completion_tokens", 0)
        return answer

    async def _head(self) -> tuple[int, dict[str, str]]:
        assert self._reader is not None
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        return int(status.split()[1]), {name.lower(): value.strip().lower() for name, value in pairs}

    async def _events(self, answer: Answered) -> None:
        assert self._reader is not None
        rest, latest = b"", b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            *events, rest = (rest + (await self._reader.readexactly(size + 2))[:-2]).split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: ") or event == _DONE:
                    continue
                latest = event
                if answer.first_s is None and _has_text(event):
                    answer.first_s = self._timer.now()
        await self._reader.readexactly(2)
        said = json.loads(latest[6:] or b"{}")
        answer.usage = said.get("usage") or {}
        if "error" in said:
            answer.error = json.dumps(said["error"])


def _has_text(event: bytes) -> bool:
    return any(choice.get("text") for choice in json.loads(event[6:]).get("choices", ()))


async def get_json(host: str, port: int, path: str) -> Any:
    """Return what a GET of a path says. Raises BackendError for a status but 200."""
    status, body = await _get(host, port, path)
    if status != 200:
        raise BackendError(f"GET {path} gave {status}: {body[:200].decode(errors='replace')}")
    return json.loads(body)


async def get_text(host: str, port: int, path: str) -> str:
    """Return the text behind a path, whatever the status."""
    return (await _get(host, port, path))[1].decode(errors="replace")


async def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if b"transfer-encoding: chunked" in head.lower():
        body = _dechunked(body)
    return int(head.split()[1]), body


def _dechunked(body: bytes) -> bytes:
    joined = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if not int(size or b"0", 16):
            return joined
        joined, body = joined + body[: int(size, 16)], body[int(size, 16) + 2 :]
