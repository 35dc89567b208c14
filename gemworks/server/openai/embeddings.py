"""POST /v1/embeddings: the mean of a text's final hidden states.

Gemma 3 was not trained to embed: vectors of like texts are near each other, less so than an embedding model's. Vectors
have length 1, as OpenAI's. `dimensions` is refused but for the model's own: cutting a vector of a model that was not
trained for it would lose what it says.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response

from gemworks.server.asking import asked, cancel, ended, prepare, submit
from gemworks.server.bodies import Body, read_body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.openai import shapes
from gemworks.server.openai.document import body_of
from gemworks.server.openai.fields import to_base64
from gemworks.server.streams import JSONBytes, finished

if TYPE_CHECKING:
    from gemworks.llm import LLM

router = APIRouter()

_MOST_INPUTS = 2048  # as OpenAI has it


class EmbeddingBody(Body):
    """Body of /v1/embeddings."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


@router.post("/v1/embeddings", openapi_extra=body_of(EmbeddingBody), response_model=None)
async def create(request: Request) -> Response:
    """Embed texts or token ids."""
    body = await read_body(request, EmbeddingBody)
    return await finished(request, _answer(request, body))


async def _answer(request: Request, body: EmbeddingBody) -> Response:
    texts = _texts(body.input)
    async with asked(request, body.model, route="embeddings") as (loaded, call):
        llm = loaded.llm
        if body.dimensions is not None and body.dimensions != llm.config.model_dim:
            raise UnsupportedError(
                "dimensions", f"Vectors of {loaded.name} have {llm.config.model_dim}.", got=body.dimensions
            )
        own: dict[str, Any] = {"key": call.key, "priority": call.priority, "name": call.id}
        prepared = [await prepare(llm, text, kind="embed", **own) for text in texts]
        prompt_tokens = sum(len(one.request.prompt) for one in prepared)
        call.charge(prompt_tokens, 0)
        vectors = await vectors_of(llm, prepared)
        call.done(None, prompt_tokens=prompt_tokens)
    as_text = body.encoding_format == "base64"
    answer = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": i,
                "embedding": to_base64(vector.astype("<f4").tobytes()) if as_text else vector.tolist(),
            }
            for i, vector in enumerate(vectors)
        ],
        "model": loaded.name,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
    return JSONBytes(shapes.dumps(answer))


async def vectors_of(llm: "LLM", prepared: list[Any]) -> list[Any]:
    """Return the vectors of prepared calls of kind "embed", each [model_dim] fp32 of length 1."""
    asks = [submit(llm, one) for one in prepared]
    try:
        handles = await asyncio.gather(*[ended(ask) for ask in asks])
    finally:
        for ask in asks:
            cancel(ask)
    return [_unit(handle.embedding) for handle in handles]


def _unit(vector: Any) -> Any:
    length = float((vector * vector).sum()) ** 0.5
    return vector / length if length > 0 else vector


def _texts(given: Any) -> list[Any]:
    """Each text, or its token ids. Raises FieldError."""
    each = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not each or len(each) > _MOST_INPUTS or any(len(one) == 0 for one in each):
        raise FieldError(
            f"input must be a text or token ids, or a list of at most {_MOST_INPUTS:,} of them, none empty.",
            param="input",
            code="invalid_value",
        )
    return each
