"""POST /api/chat: the next message of a conversation."""

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gemworks.server import asking
from gemworks.server.bodies import read_body
from gemworks.server.hooks import tool_arguments
from gemworks.server.ollama.answer import Job, answered, loaded, unloaded
from gemworks.server.ollama.checks import check_asked, form_of, keywords
from gemworks.server.ollama.conversation import conversation, fitting, limited
from gemworks.server.ollama.fields import ChatBody
from gemworks.server.ollama.options import read_keep_alive, read_options
from gemworks.server.openai.document import body_of

if TYPE_CHECKING:
    from gemworks.llm import LLM
    from gemworks.server.calls import Call

router = APIRouter()


@router.post("/api/chat", openapi_extra=body_of(ChatBody))
async def chat(request: Request) -> Response:
    """Answer a conversation. Without messages: load the model, or with keep_alive 0 let it go."""
    begun = time.perf_counter()
    body = await read_body(request, ChatBody)
    check_asked(body)
    options, limits = read_options(body.options), request.app.state.settings.limits
    form = form_of(body.format, limits.schema_bytes)
    form |= tool_arguments(body.tools, None, None, limits.schema_bytes)
    # Pictures of many megabytes are decoded beside the event loop.
    has_images = any(message.images for message in body.messages or ())
    read = lambda: conversation(body.messages or (), image_bytes=limits.image_bytes)  # noqa: E731
    said, continues = await asking.in_thread(read) if has_images else read()

    async def render(llm: "LLM", call: "Call") -> Any:
        told = keywords(body, options, form, call)
        prepared = await fitting(llm, said, continues, options, told, truncate=body.truncate is not False)
        return limited(llm, prepared, options)

    keep_alive = read_keep_alive(body.keep_alive)
    job = Job(model=body.named, form="chat", streams=body.streams, keep_alive=keep_alive, render=render, begun=begun)
    if not body.messages:
        return await (unloaded if keep_alive == 0 else loaded)(request, job)
    return await answered(request, job)
