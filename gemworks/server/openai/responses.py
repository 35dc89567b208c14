"""/v1/responses: conversations that continue by id, and their answers as typed events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.server.bodies import read_body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.hooks import form_arguments, tool_arguments
from gemworks.server.openai import shapes
from gemworks.server.openai.answering import Begun, answer
from gemworks.server.openai.document import body_of
from gemworks.server.openai.response_body import ResponseBody, conversation_of, items_of, messages_of_items, told_of
from gemworks.server.openai.response_events import Events
from gemworks.server.openai.response_output import Output, status_of, told_tool
from gemworks.server.openai.stored import ResponseStore, Stored
from gemworks.server.streams import JSONBytes, finished, open_stream

if TYPE_CHECKING:
    from gemworks.llm.answers import Chunk, Completion

router = APIRouter()


@router.post("/v1/responses", openapi_extra=body_of(ResponseBody), response_model=None)
async def create(request: Request) -> Response:
    """Answer an input, after an earlier response where one is named; whole or as a stream of events."""
    body = await read_body(request, ResponseBody)
    longest = request.app.state.settings.limits.schema_bytes
    told = told_of(body) | tool_arguments(body.tools, body.tool_choice, body.parallel_tool_calls, longest)
    told |= await form_arguments({"text.format": (body.text or {}).get("format")}, longest)
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


class MadeResponse:
    """A response while it is made."""

    def __init__(self, request: Request, body: ResponseBody, items: list[dict[str, Any]]):
        self._request, self._body, self._items = request, body, items
        self.id = shapes.new_id("resp_")
        self.output = Output(self.logprobs)
        self._created = shapes.now()
        self._said: list[dict[str, Any]] = []
        self.begun: Begun | None = None

    @property
    def may_call(self) -> bool:
        """Whether the answer may be a call."""
        return bool(self._body.tools) and self._body.tool_choice != "none"

    @property
    def tells_logprobs(self) -> bool:
        """Whether text comes with log-probabilities."""
        return self._body.tells_logprobs

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
            "output": [] if answer is None else self.output.items(answer),
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
            "tools": [told_tool(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": begun.params.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
            "user": body.user,
        }

    def logprobs(self, what: "Completion | Chunk | None") -> list[dict[str, Any]]:
        """Log-probabilities of an answer or a piece, where they were asked for."""
        assert self.begun is not None
        if not self._body.tells_logprobs or what is None or not what.logprobs:
            return []
        return shapes.logprobs_told(self.begun.loaded.llm.tokenizer, what.logprobs)

    def end(self, answer: "Completion") -> dict[str, Any]:
        """The finished response, which is kept where it may be."""
        whole = self.told(status_of(answer), answer)
        if self._body.store is not False:
            said = [*self._said, answer.message]
            _store(self._request).add(Stored(_owner(self._request), whole, self._items, said))
        return whole


async def _answer(request: Request, body: ResponseBody, told: dict[str, Any], items: list[dict[str, Any]]) -> Response:
    made = MadeResponse(request, body, items)
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
    made = MadeResponse(request, body, items)
    events = Events(made)
    messages = await made.conversation()
    async with aclosing(answer(request, messages, told, model=body.model, route="responses")) as chunks:
        made.begun = await anext(chunks)
        yield events.opening()
        completion = None
        try:
            async for chunk in chunks:
                if told_now := events.pieces(chunk):
                    yield told_now
                completion = chunk.completion or completion
        except Exception as error:
            yield events.failed(error, getattr(request.state, "id", ""))
            return
    assert completion is not None
    yield events.closing(completion)


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
