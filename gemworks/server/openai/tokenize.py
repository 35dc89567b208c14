"""POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM has them: what a prompt costs, without an answer.

lm-evaluation-harness tokenizes with these ("remote"), so that it needs no tokenizer of its own.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from gemworks.server.asking import in_thread, prepare
from gemworks.server.bodies import Body, read_body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.openai import shapes
from gemworks.server.openai.document import body_of
from gemworks.server.openai.messages import messages_of
from gemworks.server.streams import JSONBytes, finished
from gemworks.tokenizer.chat import TEMPLATE

router = APIRouter()

_MOST_IDS = 1_000_000


class TokenizeBody(Body):
    """Body of /tokenize: `prompt`, or `messages` of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=_MOST_IDS)]


@router.post("/tokenize", openapi_extra=body_of(TokenizeBody), response_model=None)
async def tokenize(request: Request) -> Response:
    """The token ids of a text, with <bos> unless add_special_tokens is false, or of a chat as the model reads it."""
    body = await read_body(request, TokenizeBody)
    if (body.prompt is None) == (body.messages is None):
        raise FieldError("give prompt or messages, and not both.", param="prompt", code="invalid_value")
    if not body.add_generation_prompt:
        raise UnsupportedError("add_generation_prompt", got=False)
    return await finished(request, _tokenize(request, body))


@router.post("/detokenize", openapi_extra=body_of(DetokenizeBody), response_model=None)
async def detokenize(request: Request) -> Response:
    """The text of token ids; control tokens are written by name."""
    body = await read_body(request, DetokenizeBody)
    return await finished(request, _detokenize(request, body))


@router.get("/tokenizer_info", response_model=None)
async def tokenizer_info(request: Request) -> Response:
    """Names of the control tokens and the chat template, as in a tokenizer_config.json; of ?model= or the default."""
    async with request.app.state.host.use(request.query_params.get("model")) as loaded:
        tokenizer = loaded.llm.tokenizer
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        told: dict[str, Any] = {key: name for key, name in names.items() if tokenizer.id_of(name) is not None}
        if loaded.llm.is_chat:
            told["chat_template"] = TEMPLATE
    return JSONBytes(shapes.dumps({"tokenizer_class": "GemmaTokenizer", **told}))


async def _tokenize(request: Request, body: TokenizeBody) -> Response:
    async with request.app.state.host.use(body.model) as loaded:
        llm = loaded.llm
        if body.prompt is not None:
            text = body.prompt
            ids = await in_thread(lambda: llm.tokenizer.encode(text))
            if body.add_special_tokens:
                ids = [llm.tokenizer.bos_id, *ids]
        else:
            messages = await messages_of(body.messages or [], request.app.state.settings)
            ids = list((await prepare(llm, messages)).request.prompt)
        told: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": llm.context}
        if body.return_token_strs:
            told["token_strs"] = [llm.tokenizer.piece(i) for i in ids]
    return JSONBytes(shapes.dumps(told))


async def _detokenize(request: Request, body: DetokenizeBody) -> Response:
    async with request.app.state.host.use(body.model) as loaded:
        tokenizer = loaded.llm.tokenizer
        text = await in_thread(lambda: tokenizer.decode(body.tokens, skip_control=False))
    return JSONBytes(shapes.dumps({"prompt": text}))
