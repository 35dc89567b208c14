"""/v1/responses: conversations that continue by id, and their answers as typed events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.server.bodies import read_body
from gemworks.server.errors import FieldError, UnsupportedError, openai_error
from gemworks.server.hooks import form_arguments
from gemworks.server.openai import shapes
from gemworks.server.openai.answering import Begun, answer
from gemworks.server.openai.document import body_of
from gemworks.server.openai.response_body import ResponseBody, conversation_of, items_of, messages_of_items, told_of
from gemworks.server.openai.stored import ResponseStore, Stored
from gemworks.server.streams import JSONBytes, finished, open_stream

if TYPE_CHECKING:
    from gemworks.llm.answers import Chunk, Completion

router = APIRouter()


@router.post("/v1/responses", openapi_extra=body_of(ResponseBody), response_model=None)
async def create(request: Request) -> Response:
    """Answer an input, after an earlier response where one is named; whole or as a stream of events."""
    body = await read_body(request, ResponseBody)
    told = told_of(body)
    told |= await form_arguments(
        {"text.format": (body.text or {}).get("format")}, request.app.state.settings.limits.schema_bytes
    )
    items = items_of(body.input)
    if body.stream:
        pieces = _stream(request, body, told, items)
        failed = partial(shapes.error_event, request_id=getattr(request.state, "id", ""))
        return await open_stream(request, pieces, failed=failed)
    return await finished(request, _answer(request, body, told, items))


@router.get("/v1/responses/{response_id}", response_model=None)
async def get_response(request: Request, response_id: str) -> Response:
    """A stored response."""
    if request.query_params.get("stream") in ("true", "1"):
        raise UnsupportedError("stream", "A stored response is told whole.")
    stored = _store(request).get(response_id, _owner(request))
    return JSONBytes(shapes.dumps(stored.response))


@router.delete("/v1/responses/{response_id}", response_model=None)
async def delete_response(request: Request, response_id: str) -> Response:
    """Forget a stored response."""
    _store(request).delete(response_id, _owner(request))
    return JSONBytes(shapes.dumps({"id": response_id, "object": "response", "deleted": True}))


@router.get("/v1/responses/{response_id}/input_items", response_model=None)
async def list_input(request: Request, response_id: str) -> Response:
    """What a stored response was asked, the latest item first, all of it in one page."""
    items = list(_store(request).get(response_id, _owner(request)).input_items)
    if request.query_params.get("order") != "asc":
        items.reverse()
    told = {"object": "list", "data": items, "has_more": False}
    return JSONBytes(shapes.dumps(told | {"first_id": items[0]["id"], "last_id": items[-1]["id"]}))


@router.post("/v1/responses/{response_id}/cancel", response_model=None)
async def cancel_response(request: Request, response_id: str) -> Response:
    """Refuse: only responses made in the background can be cancelled, and those are not supported."""
    _store(request).get(response_id, _owner(request))
    raise FieldError("Only a response made with background: true can be cancelled.", param="response_id")


class _Response:
    """A response while it is made."""

    def __init__(self, request: Request, body: ResponseBody, items: list[dict[str, Any]]):
        self._request, self._body, self._items = request, body, items
        self.id, self.item_id = shapes.new_id("resp_"), shapes.new_id("msg_")
        self._created = shapes.now()
        self._said: list[dict[str, Any]] = []
        self.begun: Begun | None = None

    async def conversation(self) -> list[dict[str, Any]]:
        """What the model is shown. Raises FieldError."""
        state, body = self._request.app.state, self._body
        if body.previous_response_id is not None:
            before = _store(self._request).previous(body.previous_response_id, _owner(self._request))
            self._said = list(before.conversation)
        self._said += await messages_of_items(self._items, state.settings)
        return conversation_of(body.instructions, self._said)

    def told(self, status: str, answer: "Completion | None" = None, error: dict[str, Any] | None = None) -> dict:
        """The response object as of now."""
        body, begun = self._body, self.begun
        assert begun is not None
        is_cut = status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": shapes.now() if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": begun.loaded.name,
            "output": [] if answer is None else [self.item(answer)],
            "parallel_tool_calls": True if body.parallel_tool_calls is None else body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": begun.params.temperature,
            "text": {"format": (body.text or {}).get("format") or {"type": "text"}, "verbosity": "medium"},
            "tool_choice": body.tool_choice or "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": begun.params.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
            "user": body.user,
        }

    def item(self, answer: "Completion | None") -> dict[str, Any]:
        """The message that the answer is; None: it has not begun."""
        done = answer is not None
        status = "in_progress" if answer is None else "incomplete" if answer.finish_reason == "length" else "completed"
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [self.part(answer)] if done else [],
        }

    def part(self, answer: "Completion | None") -> dict[str, Any]:
        """The text of the message."""
        text = "" if answer is None else answer.text
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs(answer)}

    def logprobs(self, what: "Completion | Chunk | None") -> list[dict[str, Any]]:
        """Log-probabilities of an answer or a piece, where they were asked for."""
        assert self.begun is not None
        if not self._body.tells_logprobs or what is None or not what.logprobs:
            return []
        return shapes.logprobs_told(self.begun.loaded.llm.tokenizer, what.logprobs)

    def end(self, answer: "Completion") -> dict[str, Any]:
        """The finished response, which is kept where it may be."""
        whole = self.told("incomplete" if answer.finish_reason == "length" else "completed", answer)
        if self._body.store is not False:
            said = [*self._said, {"role": "assistant", "content": answer.text}]
            _store(self._request).add(Stored(_owner(self._request), whole, self._items, said))
        return whole


async def _answer(request: Request, body: ResponseBody, told: dict[str, Any], items: list[dict[str, Any]]) -> Response:
    made = _Response(request, body, items)
    completion = None
    messages = await made.conversation()
    async with aclosing(answer(request, messages, told, model=body.model, route="responses")) as chunks:
        made.begun = await anext(chunks)
        async for chunk in chunks:
            completion = chunk.completion or completion
    assert completion is not None
    return JSONBytes(shapes.dumps(made.end(completion)))


async def _stream(
    request: Request, body: ResponseBody, told: dict[str, Any], items: list[dict[str, Any]]
) -> AsyncGenerator[bytes, None]:
    made = _Response(request, body, items)
    events = _Events(made)
    messages = await made.conversation()
    async with aclosing(answer(request, messages, told, model=body.model, route="responses")) as chunks:
        made.begun = await anext(chunks)
        yield events.opening()
        completion = None
        try:
            async for chunk in chunks:
                if chunk.text or (chunk.logprobs and body.tells_logprobs):
                    yield events.delta(chunk)
                completion = chunk.completion or completion
        except Exception as error:
            yield events.failed(error, getattr(request.state, "id", ""))
            return
    assert completion is not None
    yield events.closing(completion)


class _Events:
    """Writes the events of one response, numbered."""

    def __init__(self, made: _Response):
        self._made = made
        self._number = -1
        self._place = f'"item_id":"{made.item_id}","output_index":0,"content_index":0'

    def opening(self) -> bytes:
        """The events before the first word."""
        made = self._made
        state = made.told("in_progress")
        return b"".join(
            (
                self._event("response.created", response=state),
                self._event("response.in_progress", response=state),
                self._event("response.output_item.added", output_index=0, item=made.item(None)),
                self._event("response.content_part.added", **self._at(), part=made.part(None)),
            )
        )

    def delta(self, chunk: "Chunk") -> bytes:
        """The event of some text."""
        self._number += 1
        told = shapes.dumps(self._made.logprobs(chunk)) if chunk.logprobs else "[]"
        return (
            f'event: response.output_text.delta\ndata: {{"type":"response.output_text.delta",{self._place},'
            f'"delta":{shapes.escape(chunk.text)},"logprobs":{told},"sequence_number":{self._number}}}\n\n'
        ).encode()

    def closing(self, answer: "Completion") -> bytes:
        """The events after the last word; the response is kept."""
        made, at = self._made, self._at()
        whole = made.end(answer)
        return b"".join(
            (
                self._event("response.output_text.done", **at, text=answer.text, logprobs=made.logprobs(answer)),
                self._event("response.content_part.done", **at, part=made.part(answer)),
                self._event("response.output_item.done", output_index=0, item=made.item(answer)),
                self._event(f"response.{whole['status']}", response=whole),
            )
        )

    def failed(self, error: Exception, request_id: str) -> bytes:
        """The events that end a response that could not be finished."""
        told = openai_error(error, request_id=request_id).body["error"]
        code, message = told["code"] or "server_error", told["message"]
        whole = self._made.told("failed", error={"code": code, "message": message})
        return self._event("error", code=code, message=message, param=told["param"]) + self._event(
            "response.failed", response=whole
        )

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._made.item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **told: Any) -> bytes:
        self._number += 1
        return shapes.event(shapes.dumps({"type": kind, **told, "sequence_number": self._number}), kind)


def _usage(answer: "Completion") -> dict[str, Any]:
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.timings.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _owner(request: Request) -> str:
    """Whose response it is: the key's name; without keys everybody is one."""
    return getattr(getattr(request.state, "caller", None), "name", "") or ""


def _store(request: Request) -> ResponseStore:
    return request.app.state.responses
