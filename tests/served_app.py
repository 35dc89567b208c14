"""The server's application in this process, over models without jax: asked through ASGI, without a socket."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from fake_llm import FakeLLM

from gemworks.server.app import create_app
from gemworks.server.host import ModelHost
from gemworks.server.services import Services
from gemworks.server.settings import LogSettings, ModelSettings, Settings


class ServedApp:
    """`ask` sends a request and returns httpx's response, whole; `lines` the objects of a stream of lines.

    `llm` answers as every model; `loads` are the names it was loaded for. Close it.
    """

    def __init__(self, folder: Path, llm: FakeLLM | None = None, *, models: dict[str, Any] | None = None, **settings):
        self.llm = llm or FakeLLM()
        self.loads: list[str] = []
        told = {"usage_file": folder / "usage", "logs": LogSettings(file=folder / "log")} | settings
        self.settings = Settings(models=ModelSettings(**({"names": ("tiny",)} | (models or {}))), **told)
        self.services = Services(self.settings)
        self.services.is_ready = True
        self.host = ModelHost(self.settings.models, load=self._load)
        self.app = create_app(self.settings, self.host, self.services)
        self._runner = asyncio.Runner()

    def run(self, coroutine):
        return self._runner.run(coroutine)

    def transport(self) -> httpx.ASGITransport:
        return httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("127.0.0.1", 5))

    def ask(self, method: str, path: str, body: Any = None, **told) -> httpx.Response:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport(), base_url="http://127.0.0.1") as client:
                return await client.request(method, path, content=content, **told)

        return self.run(send())

    def post(self, path: str, **body) -> Any:
        """The answer to a POST that must succeed, as JSON."""
        response = self.ask("POST", path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def lines(self, path: str, **body) -> list[dict[str, Any]]:
        response = self.ask("POST", path, body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.text.endswith("\n")
        return [json.loads(line) for line in response.text.splitlines()]

    def error(self, path: str, status: int = 400, method: str = "POST", **body) -> str:
        """The message of a refusal in Ollama's shape."""
        response = self.ask(method, path, body)
        assert response.status_code == status, response.text
        [(name, message)] = response.json().items()
        assert name == "error"
        return message

    def close(self) -> None:
        self.run(self.host.close())
        self._runner.close()
        self.services.close()

    def _load(self, name: str) -> FakeLLM:
        self.loads.append(name)
        return self.llm
