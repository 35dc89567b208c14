"""One answer of /api/chat and /api/generate: admission, the model, the prompt, the pieces, and the figures at the end.

    {"model": ..., "created_at": ..., "message": {...} or "response": "...", "done": false}      a line a piece
    {..., "done": true, "done_reason": "stop", "total_duration": nanoseconds, ...}               the last line

Lines are joined from text: one is made for every token. Calls of functions come whole, in a line before the last.
"""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response

from gemworks.errors import CapacityError
from gemworks.server import asking
from gemworks.server.errors import ollama_error
from gemworks.server.streams import NDJSON, JSONBytes, finished, open_stream

if TYPE_CHECKING:
    from gemworks.llm import LLM, Chunk, Completion
    from gemworks.server.calls import Call
    from gemworks.tokenizer.tokenizer import Tokenizer

_SECOND = 1_000_000_000  # nanoseconds

# Around a piece's text: what comes before it after the time, and what comes after it.
_FORMS = {
    "chat": ('","message":{"role":"assistant","content":', "}"),
    "generate": ('","response":', ""),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked. form: "chat" or "generate". render(llm, call) gives the prepared request.

    context(llm, prepared, completion): the conversation as token ids, which /api/generate tells; None tells none.
    """

    model: str
    form: str
    streams: bool
    keep_alive: float | None
    render: Callable[["LLM", "Call"], Awaitable[Any]]
    context: "Callable[[LLM, Any, Completion], list[int] | None] | None" = None
    begun: float

    @property
    def route(self) -> str:
        """The route of metrics and logs."""
        return f"/api/{self.form}"


async def answered(request: Request, job: Job) -> Response:
    """Return the answer to `job`: lines as they are made, or one object."""
    if job.streams:
        return await open_stream(request, _lines(request, job), media_type=NDJSON, failed=failed_line(request))
    return await finished(request, _whole(request, job))


async def loaded(request: Request, job: Job) -> Response:
    """Load a model and answer that it is there: what an empty prompt asks for."""

    async def load() -> Response:
        async with asking.asked(request, job.model, route=job.route, keep_alive=job.keep_alive) as (_, call):
            call.done(prompt_tokens=0)
        return JSONBytes(dumped(_nothing(job, "load")))

    return await finished(request, load())


async def unloaded(request: Request, job: Job) -> Response:
    """Let a model go and answer so: what an empty prompt with keep_alive 0 asks for."""
    await request.app.state.host.unload(job.model)
    return JSONBytes(dumped(_nothing(job, "unload")))


def failed_line(request: Request) -> Callable[[Exception], bytes]:
    """Return what tells an error inside a stream, whose status is sent already."""
    request_id = getattr(request.state, "id", "")
    return lambda error: dumped(ollama_error(error, request_id=request_id).body) + b"\n"


def dumped(value: Any) -> bytes:
    """Return JSON without spaces, as it is sent."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def now() -> str:
    """The time as Ollama writes it: 2026-11-21T22:00:00.123456Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def logprobs_of(chunk: "Chunk", tokenizer: "Tokenizer") -> list[dict[str, Any]]:
    """Return the log-probabilities of a piece's tokens, and of the likeliest ones where they were asked for."""
    told = []
    for score in chunk.logprobs:
        row = _token(score.token_id, score.logprob, tokenizer)
        if score.top:
            row["top_logprobs"] = [_token(token_id, logprob, tokenizer) for token_id, logprob in score.top]
        told.append(row)
    return told


def _token(token_id: int, logprob: float, tokenizer: "Tokenizer") -> dict[str, Any]:
    text = tokenizer.token_bytes(token_id)
    return {"token": tokenizer.piece(token_id), "logprob": logprob, "bytes": list(text)}


def _nothing(job: Job, reason: str) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": ""}} if job.form == "chat" else {"response": ""}
    return {"model": job.model, "created_at": now(), **said, "done": True, "done_reason": reason}


async def _lines(request: Request, job: Job) -> AsyncGenerator[bytes, None]:
    before, after = _FORMS[job.form]
    head = f'{{"model":{_text(job.model)},"created_at":"'
    async with aclosing(_pieces(request, job)) as pieces:
        async for text, scores, calls, end in pieces:
            if text or scores:
                told = f',"logprobs":{dumped(scores).decode()}' if scores else ""
                yield f'{head}{now()}{before}{_text(text)}{after}{told},"done":false}}\n'.encode()
            if calls:
                yield f'{head}{now()}{before}"","tool_calls":{calls}{after},"done":false}}\n'.encode()
            if end is not None:
                yield f'{head}{now()}{before}""{after},"done":true,'.encode() + dumped(end)[1:] + b"\n"


async def _whole(request: Request, job: Job) -> Response:
    texts, scores, calls, end = [], [], "", {}
    async with aclosing(_pieces(request, job)) as pieces:
        async for text, some, made, last in pieces:
            texts.append(text)
            scores += some
            calls += made
            end = last or end
    text = "".join(texts)
    message = {"role": "assistant", "content": text} | ({"tool_calls": json.loads(calls)} if calls else {})
    said = {"message": message} if job.form == "chat" else {"response": text}
    told = {"logprobs": scores} if scores else {}
    return JSONBytes(dumped({"model": job.model, "created_at": now(), **said, "done": True, **end, **told}))


async def _pieces(
    request: Request, job: Job
) -> AsyncGenerator[tuple[str, list[dict[str, Any]], str, dict[str, Any] | None], None]:
    """Yield (text, log-probabilities, "", None), and with the last piece the calls and what the final line tells."""
    async with asking.asked(request, job.model, route=job.route, keep_alive=job.keep_alive) as (held, call):
        load_s = time.perf_counter() - job.begun
        llm = held.llm
        prepared = await job.render(llm, call)
        call.charge(len(prepared.request.prompt), prepared.request.params.max_tokens)
        ask = asking.submit(llm, prepared)
        try:
            async for chunk in ask.achunks():
                call.token(len(chunk.token_ids))
                text, calls, end = chunk.text, "", None
                if (completion := chunk.completion) is not None:
                    call.done(completion)
                    calls = _calls(completion)
                    text += completion.partial_call.source if completion.partial_call else ""
                    end = _end(job, completion, load_s)
                    if job.context is not None and (ids := job.context(llm, prepared, completion)) is not None:
                        end["context"] = ids
                yield text, logprobs_of(chunk, llm.tokenizer) if chunk.logprobs else [], calls, end
        finally:
            asking.cancel(ask)


def _calls(completion: "Completion") -> str:
    """The whole calls as Ollama tells them, "" for none. One that was cut is told as the text it is."""
    told = [
        f'{{"id":"{call.id}","function":{{"index":{i},"name":{_text(call.name)},"arguments":{call.text}}}}}'
        for i, call in enumerate(completion.tool_calls)
    ]
    return f"[{','.join(told)}]" if told else ""


def _end(job: Job, completion: "Completion", load_s: float) -> dict[str, Any]:
    """The figures of the final line. Durations in nanoseconds; the tower's time counts as reading the prompt."""
    if completion.finish_reason == "cancelled":
        raise CapacityError("the answer was stopped: the model was taken from memory or the server ends. Ask again.")
    timings = completion.timings
    return {
        "done_reason": "length" if completion.finish_reason in ("length", "deadline") else "stop",
        "total_duration": _nanoseconds(time.perf_counter() - job.begun),
        "load_duration": _nanoseconds(load_s),
        "prompt_eval_count": completion.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timings.prefill_s + completion.encode_s),
        "eval_count": completion.completion_tokens,
        "eval_duration": _nanoseconds(timings.decode_s),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _SECOND)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
