"""POST /v1/completions: text continued as it is, and the log-probabilities of a prompt (echo).

prompt     a text, a list of texts, token ids, or a list of lists of them; choices come prompt by prompt, n of each
echo       the prompt's text stands before the answer; with logprobs also its tokens', and with max_tokens 0 these
           alone: one pass over the prompt, which is what evaluation harnesses ask for
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.server.asking import asked, cancel, ended, prepare, submit
from gemworks.server.bodies import read_body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.hooks import form_arguments
from gemworks.server.openai import shapes
from gemworks.server.openai.document import body_of
from gemworks.server.openai.fields import Sampling, check_top, sampling_of
from gemworks.server.openai.logprobs import TokenLogprobs
from gemworks.server.streams import JSONBytes, finished, merged, open_stream

if TYPE_CHECKING:
    from gemworks.llm.answers import Completion
    from gemworks.server.calls import Call
    from gemworks.server.host import Loaded

router = APIRouter()

_MOST_PROMPTS = 2048  # as OpenAI has it
_NONE = '{"tokens":[],"token_logprobs":[],"top_logprobs":[],"text_offset":[]}'
_DEFAULT_TOKENS = 16  # OpenAI's; "until the context is full" would surprise whoever knows it


class CompletionBody(Sampling):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One prompt of a call: what the engine draws for it, and what it scores of it."""

    draws: Any = None
    scores: Any = None

    @property
    def prompt(self) -> Sequence[int]:
        return (self.draws or self.scores).request.prompt


@router.post("/v1/completions", openapi_extra=body_of(CompletionBody), response_model=None)
async def create(request: Request) -> Response:
    """Continue texts, whole or as a stream of server-sent events."""
    body = await read_body(request, CompletionBody)
    told = _told(body)
    prompts = _prompts(body.prompt)
    told |= await form_arguments(body.forms, request.app.state.settings.limits.schema_bytes)
    if body.stream:
        pieces = _stream(request, body, prompts, told)
        failed = partial(shapes.error_event, request_id=getattr(request.state, "id", ""))
        return await open_stream(request, pieces, failed=failed)
    return await finished(request, _answer(request, body, prompts, told))


def _told(body: CompletionBody) -> dict[str, Any]:
    if body.suffix:
        raise UnsupportedError("suffix", "Gemma continues text and was not trained to fill gaps.")
    limit = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if limit == 0 and not body.echo:
        raise FieldError("max_tokens must be at least 1 without echo, got 0.", param="max_tokens", code="invalid_value")
    if limit == 0 and body.num_answers > 1:
        raise FieldError("n must be 1 where nothing is drawn (max_tokens 0).", param="n", code="invalid_value")
    top = check_top(body.logprobs, "logprobs")
    told = sampling_of(body, max_tokens=max(limit, 1))
    return told | {"logprobs": body.logprobs is not None, "top_logprobs": top}


def _prompts(prompt: Any) -> list[Any]:
    """Each prompt, a text or token ids. Raises FieldError."""
    each = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    if not each or len(each) > _MOST_PROMPTS or any(one == [] for one in each):
        raise FieldError(
            f"prompt must be a text or token ids, or a list of at most {_MOST_PROMPTS:,} of them, none without tokens.",
            param="prompt",
            code="invalid_value",
        )
    return each


async def _prepared(
    loaded: "Loaded", call: "Call", body: CompletionBody, prompts: list[Any], told: dict[str, Any]
) -> list[_Asked]:
    """What the engine is asked, checked and charged; nothing is computed before all of it is known to be right."""
    own = {"key": call.key, "priority": call.priority, "name": call.id}
    each = []
    for prompt in prompts:
        draws = scores = None
        if body.max_tokens != 0:
            draws = await prepare(loaded.llm, prompt, **told, **own)
        if body.echo and (body.logprobs is not None or draws is None):
            scores = await prepare(loaded.llm, prompt, kind="score", top_logprobs=told["top_logprobs"], **own)
        each.append(_Asked(draws, scores))
    answers = told["max_tokens"] * body.num_answers if body.max_tokens != 0 else 0
    call.charge(sum(len(one.prompt) for one in each), answers * len(each))
    return each


async def _chunks(
    request: Request, body: CompletionBody, prompts: list[Any], told: dict[str, Any]
) -> AsyncGenerator[Any, None]:
    """First the model, the prompts and what is found cached of them; then (place, scores) of prompts that are echoed,
    then (place, chunk)s."""
    async with asked(request, body.model, route="completions") as (loaded, call):
        each = await _prepared(loaded, call, body, prompts, told)
        # Scores first: beside draws a step's shapes differ, and with them the last bit of bf16. Alone they are those of
        # LLM.logprobs, and the draws find their prompts in the cache.
        asks = [one.scores and submit(loaded.llm, one.scores) for one in each]
        drawn: list[Completion] = []
        cached: dict[int, int] = {}  # of each prompt, by what computed it first: the rest find what that one left
        try:
            yield loaded, [one.prompt for one in each], cached
            if body.echo:
                for place, ask in enumerate(asks):
                    handle = await ended(ask) if ask else None
                    if handle is not None:
                        cached[place] = handle.timings().cached_tokens
                    yield place, handle and handle.scores
            asks = [submit(loaded.llm, one.draws) for one in each if one.draws is not None]
            async with aclosing(merged([ask.achunks() for ask in asks])) as chunks:
                async for place, chunk in chunks:
                    if chunk.token_ids:
                        call.token(len(chunk.token_ids))
                    if chunk.completion is not None:
                        shapes.finish(chunk.finish_reason)
                        drawn.append(chunk.completion)
                        if chunk.index == 0:
                            cached.setdefault(place, chunk.completion.timings.cached_tokens)
                    yield place, chunk
            call.done(drawn, prompt_tokens=sum(len(one.prompt) for one in each))
        finally:
            for ask in filter(None, asks):
                cancel(ask)


class _Choice:
    """One choice as it grows."""

    def __init__(self, echo: str, logprobs: TokenLogprobs | None):
        self.text, self.logprobs, self.completion = echo, logprobs, None

    def told(self, index: int) -> dict[str, Any]:
        """The choice as it is told whole."""
        return {
            "text": self.text,
            "index": index,
            "logprobs": self.logprobs.take() if self.logprobs else None,
            "finish_reason": shapes.finish(self.completion.finish_reason) if self.completion else "length",
        }


async def _answer(request: Request, body: CompletionBody, prompts: list[Any], told: dict[str, Any]) -> Response:
    made: list[Completion] = []
    async with aclosing(_chunks(request, body, prompts, told)) as chunks:
        loaded, ids, cached = await anext(chunks)
        choices = _choices(body, loaded, prompts, ids)
        async for place, what in chunks:
            for choice in _touched(choices, place, what, body.num_answers):
                _add(choice, what)
            if (completion := getattr(what, "completion", None)) is not None:
                made.append(completion)
    answer = _head(loaded.name) | {
        "choices": [choice.told(i) for i, choice in enumerate(choices)],
        "usage": _usage(ids, made, cached),
    }
    return JSONBytes(shapes.dumps(answer))


async def _stream(
    request: Request, body: CompletionBody, prompts: list[Any], told: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    made: list[Completion] = []
    async with aclosing(_chunks(request, body, prompts, told)) as chunks:
        loaded, ids, cached = await anext(chunks)
        head = f"data: {shapes.dumps(_head(loaded.name))[:-1]},"
        tail = ',"usage":null}\n\n' if body.tells_usage else "}\n\n"
        choices = _choices(body, loaded, prompts, ids)
        async for place, what in chunks:
            completion = getattr(what, "completion", None)
            for choice in _touched(choices, place, what, body.num_answers):
                _add(choice, what)
                text, choice.text = choice.text, ""
                told_logprobs = shapes.dumps(choice.logprobs.take()) if choice.logprobs else "null"
                ends = completion is not None or body.max_tokens == 0
                if not (text or ends or (choice.logprobs and told_logprobs != _NONE)):
                    continue
                reason = f'"{shapes.finish(completion.finish_reason) if completion else "length"}"' if ends else "null"
                index = choices.index(choice)
                yield (
                    f'{head}"choices":[{{"index":{index},"text":{shapes.escape(text)},"logprobs":{told_logprobs},'
                    f'"finish_reason":{reason}}}]{tail}'
                ).encode()
            if completion is not None:
                made.append(completion)
        if body.tells_usage:
            yield f'{head}"choices":[],"usage":{shapes.dumps(_usage(ids, made, cached))}}}\n\n'.encode()
        yield shapes.DONE


def _choices(body: CompletionBody, loaded: "Loaded", prompts: list[Any], ids: list[Sequence[int]]) -> list[_Choice]:
    """The choices, prompt by prompt, each beginning with its prompt where that is echoed."""
    tokenizer = loaded.llm.tokenizer
    made = []
    for prompt, its in zip(prompts, ids, strict=True):
        echo = "" if not body.echo else prompt if isinstance(prompt, str) else tokenizer.decode(its)
        for _ in range(body.num_answers):
            logprobs = None if body.logprobs is None else TokenLogprobs(tokenizer, ids=its if body.echo else ())
            made.append(_Choice(echo, logprobs))
    return made


def _touched(choices: list[_Choice], place: int, what: Any, n: int) -> list[_Choice]:
    """The choices that a piece belongs to: a prompt's scores to all of its answers, a chunk to one."""
    index = getattr(what, "index", None)
    mine = choices[place * n : (place + 1) * n]
    return mine if isinstance(what, list) or what is None else [mine[index]]  # type: ignore[index]


def _add(choice: _Choice, what: Any) -> None:
    if isinstance(what, list) or what is None:
        if choice.logprobs is not None and what is not None:
            choice.logprobs.echo(what)
        return
    choice.text += what.text
    if choice.logprobs is not None:
        choice.logprobs.add(what.logprobs)
        ended = what.completion
        if ended is not None and ended.finish_reason == "stop" and ended.stop_string is None:
            choice.logprobs.end()
    choice.completion = what.completion


def _head(model: str) -> dict[str, Any]:
    return {
        "id": shapes.new_id("cmpl-"),
        "object": "text_completion",
        "created": shapes.now(),
        "model": model,
        "system_fingerprint": shapes.FINGERPRINT,
    }


def _usage(ids: list[Sequence[int]], made: "list[Completion]", cached: dict[int, int]) -> dict[str, Any]:
    return shapes.usage(sum(map(len, ids)), sum(answer.completion_tokens for answer in made), sum(cached.values()))
