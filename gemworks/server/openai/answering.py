"""A conversation's answer as chunks, for chat and responses: admission, prompt, tokens, books."""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import Request

from gemworks.server.asking import asked, cancel, prepare, submit
from gemworks.server.openai import shapes

if TYPE_CHECKING:
    from gemworks.engine.types import SamplingParams
    from gemworks.server.host import Loaded


class Begun(NamedTuple):
    """A call that is queued: what it is asked of, and what it will be drawn with."""

    loaded: "Loaded"
    prompt_tokens: int
    params: "SamplingParams"


async def answer(
    request: Request, messages: Sequence[Any], told: dict[str, Any], *, model: str | None, route: str
) -> AsyncGenerator[Any, None]:
    """Yield a Begun when the call is queued, then its chunks; closing it ends the call.

    told: keywords of LLM.stream, n among them. What is wrong is raised before the Begun.
    """
    n = told.get("n") or 1
    async with asked(request, model, route=route) as (loaded, call):
        prepared = await prepare(loaded.llm, messages, key=call.key, priority=call.priority, name=call.id, **told)
        params, prompt_tokens = prepared.request.params, len(prepared.request.prompt)
        call.charge(prompt_tokens, params.max_tokens and params.max_tokens * n)
        ask = submit(loaded.llm, prepared)
        try:
            yield Begun(loaded, prompt_tokens, params)
            ended = []
            async for chunk in ask.achunks():
                if chunk.token_ids:
                    call.token(len(chunk.token_ids))
                if chunk.completion is not None:
                    shapes.finish(chunk.finish_reason)
                    ended.append(chunk.completion)
                    if len(ended) == n:
                        call.done(ended)
                yield chunk
        finally:
            cancel(ask)
