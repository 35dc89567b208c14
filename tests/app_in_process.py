"""The server's application over a FakeLLM, asked in this process: no socket, no jax.

server = FakeServer(tmp_path); answer = server.post("/v1/chat/completions", {...}); answer.status, answer.json
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_llm import FakeLLM

from gemworks.server.app import create_app
from gemworks.server.host import ModelHost
from gemworks.server.services import Services
from gemworks.server.settings import ModelSettings, Settings


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False  # the last piece was sent

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, [DONE] as text."""
        told = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in told]


class FakeServer:
    """One application and its event loop. `llm` is the FakeLLM behind every name."""

    def __init__(self, folder: Path, settings: Settings | None = None, *, llm: FakeLLM | None = None):
        self.llm = llm or FakeLLM()
        self.settings = settings or Settings(usage_file=folder / "usage.sqlite", models=ModelSettings(names=("tiny",)))
        self.host = ModelHost(self.settings.models, load=lambda name: self.llm)  # type: ignore[arg-type,return-value]
        self.services = Services(self.settings)
        self.app = create_app(self.settings, self.host, self.services)
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.run(self.host.close())
        self._runner.close()
        self.services.close()

    def run(self, work):
        return self._runner.run(work)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.run(self.ask("POST", path, body, **headers))

    def get(self, path: str) -> Answer:
        return self.run(self.ask("GET", path))

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        gone: asyncio.Event | None = None,
        take: Callable[[bytes], Any] | None = None,
        **headers: str,
    ) -> Answer:
        """Answer one request. gone: set when the client closes the connection. take: awaited for each piece sent."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        gone = gone or asyncio.Event()
        sent, answer = False, Answer()

        async def receive():
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": data, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {key.decode(): value.decode() for key, value in message["headers"]}
            else:
                piece = message.get("body", b"")
                answer.body += piece
                answer.is_whole = not message.get("more_body", False)
                if take is not None and piece:
                    await take(piece)

        path, _, query = path.partition("?")
        told = [(b"host", b"127.0.0.1"), (b"content-length", str(len(data)).encode())]
        told += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"},
            **{"path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": ""},
            **{"headers": told, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 11434)},
        }
        await self.app(scope, receive, send)
        return answer
