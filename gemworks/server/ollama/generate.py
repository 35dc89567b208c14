"""POST /api/generate: the answer to one prompt, or the continuation of a text.

`context` is the conversation so far as token ids: those of the prompt and of the answer. Sent back with the next prompt
they stand as they are, so nothing of them is computed again. Where the prompt had images there is none: ids do not say
what was seen.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.server import asking
from gemworks.server.bodies import read_body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.ollama.answer import Job, answered, loaded, unloaded
from gemworks.server.ollama.checks import check_asked, form_of, keywords
from gemworks.server.ollama.conversation import Turn, fitting, image_of, limited
from gemworks.server.ollama.fields import GenerateBody
from gemworks.server.ollama.options import Asked, read_keep_alive, read_options
from gemworks.server.openai.document import body_of
from gemworks.tokenizer.chat import continue_chat, is_gemma_template

if TYPE_CHECKING:
    from gemworks.llm import LLM, Completion
    from gemworks.server.calls import Call

router = APIRouter()

_IMAGE = "<image_soft_token>"


@router.post("/api/generate", openapi_extra=body_of(GenerateBody))
async def generate(request: Request) -> Response:
    """Answer a prompt. Without one: load the model, or with keep_alive 0 let it go."""
    begun = time.perf_counter()
    body = await read_body(request, GenerateBody)
    check_asked(body)
    _check(body)
    options, limits = read_options(body.options), request.app.state.settings.limits
    form = form_of(body.format, limits.schema_bytes)
    images = body.images or []
    decode = lambda: [image_of(image, f"images[{i}]", limits.image_bytes) for i, image in enumerate(images)]  # noqa: E731
    parts = await asking.in_thread(decode) if images else []

    async def render(llm: "LLM", call: "Call") -> Any:
        told = keywords(body, options, form, call)
        return limited(llm, await _prepared(llm, body, parts, options, told), options)

    keep_alive = read_keep_alive(body.keep_alive)
    job = Job(
        model=body.named,
        form="generate",
        streams=body.streams,
        keep_alive=keep_alive,
        render=render,
        context=None if body.raw else _context,
        begun=begun,
    )
    if not body.prompt and not images:
        return await (unloaded if keep_alive == 0 else loaded)(request, job)
    return await answered(request, job)


async def _prepared(
    llm: "LLM", body: GenerateBody, images: Sequence[dict[str, Any]], options: Asked, told: dict[str, Any]
) -> Any:
    """The request for the engine: the prompt as it is, after a conversation, or as the question of a new one."""
    text = body.prompt or ""
    if body.raw:
        return await asking.prepare(llm, await asking.in_thread(lambda: _raw_ids(llm, text)), **told)
    if body.context:
        return await asking.prepare(llm, await asking.in_thread(lambda: _continued(llm, body, text)), **told)
    if not llm.is_chat:
        if body.system:
            raise UnsupportedError("system", f"{body.named} is pre-trained: it continues text.")
        return await asking.prepare(llm, [*images, text] if images else text, **told)
    said: list[Turn] = [{"role": "system", "content": body.system}] if body.system else []
    content = [*images, {"type": "text", "text": text}] if images else text
    said.append({"role": "user", "content": content})
    return await fitting(llm, said, "", options, told, truncate=False)


def _check(body: GenerateBody) -> None:
    if body.suffix:
        raise UnsupportedError("suffix", "Gemma was not taught to fill in between two texts.")
    if body.template and not is_gemma_template(body.template):
        raise UnsupportedError(
            "template", "Chats are rendered as Gemma 3 was taught to read them. Leave it out, or use raw."
        )
    together = {"template": body.template, "system": body.system, "context": body.context, "images": body.images}
    for name, value in together.items():
        if body.raw and value:
            raise FieldError(
                f"{name} does not go with raw, where the prompt is all there is.", param=name, code="invalid_value"
            )
    if body.context and body.images:
        raise FieldError(
            "images do not go with context: token ids do not say what was seen. Use /api/chat with all messages.",
            param="images",
            code="invalid_value",
        )


def _raw_ids(llm: "LLM", text: str) -> list[int]:
    """A raw prompt: control tokens in it are meant, as whoever writes a template by hand means them."""
    tokenizer = llm.tokenizer
    ids = tokenizer.encode(text, control=True)
    return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]


def _continued(llm: "LLM", body: GenerateBody, text: str) -> list[int]:
    """The ids of a conversation so far, and the next question."""
    context = body.context or []
    placeholder = llm.tokenizer.id_of(_IMAGE)
    if placeholder is not None and placeholder in context:
        raise FieldError(
            "context has an image in it, and ids do not say what was seen. Use /api/chat with all messages.",
            param="context",
            code="invalid_value",
        )
    if not llm.is_chat:
        return [*context, *llm.tokenizer.encode(text)]
    asked = f"{body.system}\n\n{text.strip()}" if body.system else text
    return [*context, *continue_chat(llm.tokenizer, [{"role": "user", "content": asked}])]


def _context(llm: "LLM", prepared: Any, completion: "Completion") -> list[int] | None:
    """The conversation as ids, None where images are in it."""
    request = prepared.request
    if request.spans:
        return None
    # A stop string is no part of the answer, and its tokens are.
    drawn = completion.token_ids if completion.stop_string is None else llm.tokenizer.encode(completion.text)
    return [*request.prompt, *drawn]
