"""A server with the chat page and scripted answers: what no real model can be asked for (errors, lost connections)."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from gemworks.server import page

MODELS = [
    {"id": "sees", "object": "model", "max_model_len": 8192, "capabilities": ["completion", "vision"]},
    {"id": "blind", "object": "model", "max_model_len": 2048, "capabilities": ["completion"]},
    {"id": "embeds", "object": "model", "capabilities": ["embedding"]},
]


@dataclass
class Answer:
    """What the next chat request gets. pause_s: before each piece. cut: the connection ends after the last piece."""

    text: str = "Fine."
    size: int = 7
    pause_s: float = 0.0
    cut: bool = False
    status: int = 200
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    late_error: str = ""


class PageServer:
    """The page on a free port. `answers` are taken one by one, the last one stays; `requests` are bodies that came."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.key = ""
        self.url = ""
        self.stopped = 0  # streams whose reader went away
        self.app = FastAPI()
        self.app.include_router(page.router)
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/chat/completions")(self.chat)
        config = uvicorn.Config(self.app, port=0, log_level="error", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def start(self) -> None:
        self.thread.start()
        until = time.monotonic() + 20
        while not self.server.started:
            assert time.monotonic() < until, "uvicorn did not start"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(20)

    def reset(self, *answers: Answer, key: str = "") -> None:
        """Forget what came and give these answers from now on."""
        self.answers, self.requests, self.key, self.stopped = list(answers) or [Answer()], [], key, 0

    def refused(self, request: Request) -> Response | None:
        if not self.key or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return error(401, "This server wants an API key.")

    async def models(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse({"object": "list", "data": MODELS})

    async def chat(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        self.requests.append(await request.json())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer.status != 200:
            return error(answer.status, answer.message, answer.headers)
        return StreamingResponse(self.stream(answer), media_type="text/event-stream", headers={"x-request-id": "req-1"})

    async def stream(self, answer: Answer) -> AsyncIterator[str]:
        pieces = [answer.text[at : at + answer.size] for at in range(0, len(answer.text), answer.size)]
        try:
            for piece in pieces:
                await asyncio.sleep(answer.pause_s)
                yield event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise
        if answer.late_error:
            yield event({"error": {"message": answer.late_error}})
        if answer.late_error or answer.cut:
            return
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": answer.finish}]})
        tokens = {"prompt_tokens": 1200, "completion_tokens": len(pieces), "total_tokens": 1200 + len(pieces)}
        yield event({"choices": [], "usage": {**tokens, "prompt_tokens_details": {"cached_tokens": 1100}}})
        yield "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'model': 'sees', **data})}\n\n"


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(
        {"error": {"message": message, "type": "x"}}, status, {"x-request-id": "req-9", **(headers or {})}
    )
