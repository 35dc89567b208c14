"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.server.bodies import read_body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.hooks import form_arguments, tool_arguments
from gemworks.server.openai import shapes
from gemworks.server.openai.answering import answer
from gemworks.server.openai.document import body_of
from gemworks.server.openai.fields import Count, Sampling, check_inert, check_top, sampling_of
from gemworks.server.openai.messages import messages_of
from gemworks.server.streams import JSONBytes, finished, open_stream

if TYPE_CHECKING:
    from gemworks.llm.answers import Chunk, Completion
    from gemworks.text.toolcalls import CallDelta
    from gemworks.tokenizer.tokenizer import Tokenizer

router = APIRouter()

# Fields that change nothing where they have these values, and are refused with others. Those of a metadata kind
# (metadata, safety_identifier, prompt_cache_key: a hint) are taken as they come.
_INERT: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "echo": (False,),
}


class ChatBody(Sampling):
    """Body of /v1/chat/completions."""

    messages: list[Any]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    pan_and_scan: bool | None = None  # ours: pictures far from square are read in crops too
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    modalities: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    service_tier: Any = None
    store: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None
    continue_final_message: Any = None
    add_generation_prompt: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    echo: Any = None


@router.post("/v1/chat/completions", openapi_extra=body_of(ChatBody), response_model=None)
async def create(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    body = await read_body(request, ChatBody)
    longest = request.app.state.settings.limits.schema_bytes
    told = _told(body) | tool_arguments(body.tools, body.tool_choice, body.parallel_tool_calls, longest)
    told |= await form_arguments(body.forms, longest)
    if body.stream:
        pieces = _stream(request, body, told)
        return await open_stream(request, pieces, failed=partial(shapes.error_event, request_id=_id(request)))
    return await finished(request, _answer(request, body, told))


def _told(body: ChatBody) -> dict[str, Any]:
    """The keywords of LLM.stream. Raises FieldError."""
    for name in ("functions", "function_call"):
        if getattr(body, name):
            raise UnsupportedError(name, "It is the old form of tools: send tools and tool_choice.")
    check_inert(body.__dict__, _INERT)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise FieldError(
            "max_tokens is the old name of max_completion_tokens; give one of them.",
            param="max_tokens",
            code="invalid_value",
        )
    if body.max_tokens == 0:
        raise FieldError("max_tokens must be at least 1, got 0.", param="max_tokens", code="invalid_value")
    if body.top_logprobs and not body.logprobs:
        raise FieldError("top_logprobs goes with logprobs: true.", param="top_logprobs", code="invalid_value")
    told = sampling_of(body, max_tokens=body.max_completion_tokens or body.max_tokens)
    told |= {"logprobs": bool(body.logprobs), "top_logprobs": check_top(body.top_logprobs, "top_logprobs")}
    return told | {"pan_and_scan": body.pan_and_scan}


async def _answer(request: Request, body: ChatBody, told: dict[str, Any]) -> Response:
    made: dict[int, Completion] = {}
    messages = await messages_of(body.messages, request.app.state.settings)
    async with aclosing(answer(request, messages, told, model=body.model, route="chat")) as chunks:
        loaded, prompt_tokens, _ = await anext(chunks)
        async for chunk in chunks:
            if chunk.completion is not None:
                made[chunk.index] = chunk.completion
    tokenizer = loaded.llm.tokenizer
    whole = {
        "id": shapes.new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": shapes.now(),
        "model": loaded.name,
        "choices": [_choice(i, made[i], tokenizer) for i in sorted(made)],
        "usage": shapes.usage_of(prompt_tokens, list(made.values())),
        "service_tier": "default",
        "system_fingerprint": shapes.FINGERPRINT,
    }
    return JSONBytes(shapes.dumps(whole))


def _choice(index: int, made: "Completion", tokenizer: "Tokenizer") -> dict[str, Any]:
    told = None
    if made.logprobs is not None:
        told = {"content": shapes.logprobs_told(tokenizer, made.logprobs), "refusal": None}
    calls: list[Any] = [*made.tool_calls, *([made.partial_call] if made.partial_call else ())]
    message: dict[str, Any] = {"role": "assistant", "content": made.text or (None if calls else "")}
    message |= {"refusal": None, "annotations": []}
    return {
        "index": index,
        "message": message | ({"tool_calls": [call.told() for call in calls]} if calls else {}),
        "logprobs": told,
        "finish_reason": shapes.finish(made.finish_reason),
    }


async def _stream(request: Request, body: ChatBody, told: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    messages = await messages_of(body.messages, request.app.state.settings)
    async with aclosing(answer(request, messages, told, model=body.model, route="chat")) as chunks:
        loaded, prompt_tokens, _ = await anext(chunks)
        writer = _Writer(body, loaded.name, loaded.llm.tokenizer)
        yield b"".join(writer.opening(i) for i in range(body.num_answers))
        made: list[Completion] = []
        async for chunk in chunks:
            if chunk.text or (chunk.logprobs and body.logprobs):
                yield writer.piece(chunk)
            for delta in chunk.calls:
                yield writer.call(chunk.index, delta)
            if chunk.completion is not None:
                made.append(chunk.completion)
                yield writer.closing(chunk)
        if body.tells_usage:
            yield writer.usage(shapes.usage_of(prompt_tokens, made))
        yield shapes.DONE


class _Writer:
    """Writes the events of one answer. What is the same in all of them is made once."""

    def __init__(self, body: ChatBody, model: str, tokenizer: "Tokenizer"):
        head = {
            "id": shapes.new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": shapes.now(),
            "model": model,
            "service_tier": "default",
            "system_fingerprint": shapes.FINGERPRINT,
        }
        self._head = f"data: {shapes.dumps(head)[:-1]},"
        self._tail = ',"usage":null}\n\n' if body.tells_usage else "}\n\n"
        self._tells_logprobs = bool(body.logprobs)
        # An answer that may be a call may have no content at all.
        self._empty = "null" if body.tools and body.tool_choice != "none" else '""'
        self._tokenizer = tokenizer
        self._delta = [f'{self._head}"choices":[{{"index":{i},"delta":{{"content":' for i in range(body.num_answers)]

    def opening(self, index: int) -> bytes:
        """The event that begins an answer, with its role."""
        delta = f'{{"role":"assistant","content":{self._empty},"refusal":null}}'
        return self._event(index, delta, "null", "null")

    def piece(self, chunk: "Chunk") -> bytes:
        """The event of some text."""
        if not self._tells_logprobs:
            rest = f'}},"logprobs":null,"finish_reason":null}}]{self._tail}'
            return (self._delta[chunk.index] + shapes.escape(chunk.text) + rest).encode()
        told = {"content": shapes.logprobs_told(self._tokenizer, chunk.logprobs), "refusal": None}
        return self._event(chunk.index, f'{{"content":{shapes.escape(chunk.text)}}}', shapes.dumps(told), "null")

    def call(self, index: int, delta: "CallDelta") -> bytes:
        """The event of a piece of a call: the first has its id and name."""
        head: dict[str, Any] = {"index": delta.index}
        if delta.id is not None:
            head |= {"id": delta.id, "type": "function"}
        told = {"arguments": delta.text} if delta.name is None else {"name": delta.name, "arguments": delta.text}
        return self._event(index, shapes.dumps({"tool_calls": [head | {"function": told}]}), "null", "null")

    def closing(self, chunk: "Chunk") -> bytes:
        """The event that says why an answer ended."""
        return self._event(chunk.index, "{}", "null", f'"{shapes.finish(chunk.finish_reason)}"')

    def usage(self, told: dict[str, Any]) -> bytes:
        """The event of usage, which has no choices."""
        return f'{self._head}"choices":[],"usage":{shapes.dumps(told)}}}\n\n'.encode()

    def _event(self, index: int, delta: str, logprobs: str, reason: str) -> bytes:
        choice = f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
        return f'{self._head}"choices":[{choice}]{self._tail}'.encode()


def _id(request: Request) -> str:
    return getattr(request.state, "id", "")
