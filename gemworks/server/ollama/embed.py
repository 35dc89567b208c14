"""POST /api/embed and the older /api/embeddings: the mean of a text's final hidden states.

Gemma 3 was not trained to embed: vectors of like texts are near each other, less so than an embedding model's. As in
Ollama those of /api/embed have length 1, and those of /api/embeddings are as they come.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request, Response

from gemworks.errors import ContextLengthError
from gemworks.server import asking
from gemworks.server.bodies import read_body
from gemworks.server.errors import FieldError
from gemworks.server.ollama.answer import dumped
from gemworks.server.ollama.conversation import context_of
from gemworks.server.ollama.fields import EmbedBody, EmbeddingsBody
from gemworks.server.ollama.options import Asked, read_keep_alive, read_options
from gemworks.server.openai.document import body_of
from gemworks.server.streams import JSONBytes, finished

if TYPE_CHECKING:
    from gemworks.llm import LLM
    from gemworks.server.calls import Call

router = APIRouter()


@router.post("/api/embed", openapi_extra=body_of(EmbedBody))
async def embed(request: Request) -> Response:
    """Embed a text or several. A text that is too long is cut, unless `truncate` is false."""
    begun = time.perf_counter()
    body = await read_body(request, EmbedBody)
    options, keep_alive = read_options(body.options), read_keep_alive(body.keep_alive)
    model = body.named
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    texts = [] if texts == [""] and isinstance(body.input, str) else texts

    async def answer() -> Response:
        async with asking.asked(request, model, route="/api/embed", keep_alive=keep_alive) as (held, call):
            load_s = time.perf_counter() - begun
            vectors, tokens = await _vectors(held.llm, call, texts, options, cuts=body.truncate is not False)
            told = {
                "model": model,
                "embeddings": _unit(vectors, body.dimensions).tolist() if texts else [],
                "total_duration": round((time.perf_counter() - begun) * 1e9),
                "load_duration": round(load_s * 1e9),
                "prompt_eval_count": tokens,
            }
            return JSONBytes(await asking.in_thread(lambda: dumped(told)))

    return await finished(request, answer())


@router.post("/api/embeddings", openapi_extra=body_of(EmbeddingsBody))
async def embeddings(request: Request) -> Response:
    """Embed one text, as it was done before /api/embed. An empty one loads the model."""
    body = await read_body(request, EmbeddingsBody)
    options, keep_alive = read_options(body.options), read_keep_alive(body.keep_alive)
    model, texts = body.named, [body.prompt] if body.prompt else []

    async def answer() -> Response:
        async with asking.asked(request, model, route="/api/embeddings", keep_alive=keep_alive) as (held, call):
            vectors, _ = await _vectors(held.llm, call, texts, options, cuts=True)
            return JSONBytes(dumped({"embedding": vectors[0].tolist() if texts else []}))

    return await finished(request, answer())


async def _vectors(
    llm: "LLM", call: "Call", texts: Sequence[str], options: Asked, *, cuts: bool
) -> tuple[np.ndarray, int]:
    """The texts' vectors, [texts, model_dim], as they come, and how many tokens they have together."""
    told = {"kind": "embed", "key": call.key, "priority": call.priority}
    prepared = [await _prepared(llm, text, context_of(llm, options), cuts, told) for text in texts]
    tokens = sum(len(one.request.prompt) for one in prepared)
    call.charge(tokens)
    handles = await asyncio.gather(*(asking.ended(asking.submit(llm, one)) for one in prepared))
    call.done(prompt_tokens=tokens)
    return np.array([handle.embedding for handle in handles], dtype=np.float32), tokens


async def _prepared(llm: "LLM", text: str, limit: int, cuts: bool, told: dict[str, Any]) -> Any:
    tokens = 0
    try:
        prepared = await asking.prepare(llm, text, **told)
        tokens = len(prepared.request.prompt)
        if tokens <= limit:
            return prepared
    except ContextLengthError:
        if not cuts:
            raise
    if not cuts:
        raise ContextLengthError(
            f"the input has {tokens:,} tokens, and num_ctx allows {limit:,}. Shorten it, or leave truncate out."
        )
    tokenizer = llm.tokenizer
    ids = await asking.in_thread(lambda: [tokenizer.bos_id, *tokenizer.encode(text)][:limit])
    return await asking.prepare(llm, ids, **told)


def _unit(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The vectors' first `dimensions` numbers, at length 1."""
    width = vectors.shape[1]
    if dimensions is not None and dimensions > width:
        raise FieldError(
            f"dimensions must be at most {width:,}, the width of this model, got {dimensions:,}.", param="dimensions"
        )
    cut = vectors[:, : dimensions or width]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
