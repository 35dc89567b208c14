"""Conversations as Ollama's clients send them, as our models take them.

Clients send two questions in a row, a system message in the middle, more history than the context holds, or an answer
that is to be continued. Ollama takes all of these, and so do we:

    user, user                one turn, joined by an empty line
    system, system            one system message; a later one becomes part of the user's turn that follows
    ... too long              the oldest exchanges are left out, as `truncate` says (on where nothing is said)
    ... assistant at the end  the answer goes on from there
    assistant's tool_calls    calls, which `tool` messages answer: by tool_call_id, by tool_name, or in their order

An image stands before the text of its message, as in Ollama.
"""

import binascii
import dataclasses
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemworks.errors import ContextLengthError
from gemworks.server import asking
from gemworks.server.errors import FieldError, TooLargeError
from gemworks.server.ollama.fields import Message
from gemworks.server.ollama.options import Asked

if TYPE_CHECKING:
    from gemworks.llm import LLM

Turn = dict[str, Any]

_ROLES = ("system", "user", "assistant", "tool")
_BETWEEN = "\n\n"

# Of the context, what is kept free for the answer where nobody says how long it may be.
_ROOM = 8


def conversation(messages: Sequence[Message], *, image_bytes: int) -> tuple[list[Turn], str]:
    """Return the messages as our models take them, and the beginning of the answer they end with, if any.

    image_bytes: the largest image. Raises FieldError that names the message.
    """
    said: list[Turn] = []
    for i, message in enumerate(messages):
        turn = _turn(message, i, image_bytes)
        if turn["role"] == "system" and any(one["role"] != "system" for one in said):
            turn["role"] = "user"
        if said and said[-1]["role"] == turn["role"] != "tool" and "tool_calls" not in said[-1]:
            said[-1] = turn | {"content": _joined(said[-1]["content"], turn["content"])}
        else:
            said.append(turn)
    begun = ""
    if len(said) > 1 and said[-1]["role"] == "assistant" and "tool_calls" not in said[-1]:
        begun = _text(said.pop()["content"])
    return said, begun


def image_of(text: str, where: str, image_bytes: int) -> dict[str, Any]:
    """Return an image in base64 as a part of a message. Raises FieldError."""
    encoded = text.split(",", 1)[1] if text[:5].lower() == "data:" and "," in text else text
    try:
        data = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(f"{where} must be an image in base64, and it is not: {error}.", param=where) from None
    if len(data) > image_bytes:
        raise TooLargeError(
            f"{where} has {len(data):,} bytes; this server takes images of {image_bytes:,}.", param=where
        )
    return {"type": "image", "image": data}


async def fitting(
    llm: "LLM", said: Sequence[Turn], begun: str, asked: Asked, told: Mapping[str, Any], *, truncate: bool
) -> Any:
    """Return a conversation prepared for the engine, without its oldest exchanges where it is too long.

    said, begun: as `conversation` gives them. told: keywords of LLM.stream. Raises ContextLengthError where it is too
    long with `truncate` off, or without any of its history.
    """
    limit = context_of(llm, asked)
    first = 1 if said and said[0]["role"] == "system" else 0
    # An exchange begins with what the user says; calls and their results are of the one they are in.
    begins = [first, *(i for i, turn in enumerate(said) if i > first and turn["role"] == "user")]
    exchanges = len(begins) - 1 if truncate else 0

    async def attempt(left_out: int) -> Any:
        kept = [*said[:first], *said[begins[left_out] :]]
        try:
            prepared = continued(llm, await asking.prepare(llm, kept, **told), begun)
        except ContextLengthError:
            if left_out == exchanges:
                raise
            return None
        room = 1 if left_out == exchanges else _room(llm, asked, limit)
        if len(prepared.request.prompt) + room <= limit:
            return prepared
        if left_out == exchanges:
            raise too_long(len(prepared.request.prompt), limit)
        return None

    best = await attempt(0)
    if best is not None:
        return best
    low, high = 1, exchanges  # leaving out `high` of them fits, or nothing does
    while low < high:
        middle = (low + high) // 2
        if (found := await attempt(middle)) is None:
            low = middle + 1
        else:
            best, high = found, middle
    return await attempt(high) if best is None else best


def continued(llm: "LLM", prepared: Any, begun: str) -> Any:
    """Return the prepared request with the beginning of an answer after its prompt, as one text with the header."""
    if not begun:
        return prepared
    tokenizer = llm.tokenizer
    header = tokenizer.encode("model\n")
    kept = prepared.request.prompt[: len(prepared.request.prompt) - len(header)]
    return with_prompt(prepared, [*kept, *tokenizer.encode(f"model\n{begun}")])


def limited(llm: "LLM", prepared: Any, asked: Asked) -> Any:
    """Return the prepared request with the length its answer may have: num_predict, and what num_ctx leaves.

    Raises ContextLengthError where num_ctx leaves nothing.
    """
    request, limit = prepared.request, context_of(llm, asked)
    left = limit - len(request.prompt)
    if left < 1:
        raise too_long(len(request.prompt), limit)
    most = _wanted(llm, asked)
    if limit < llm.context or (most is not None and most > left):
        most = min(left, most or left)
    params = dataclasses.replace(request.params, max_tokens=most)
    return dataclasses.replace(prepared, request=dataclasses.replace(request, params=params))


def with_prompt(prepared: Any, ids: Sequence[int]) -> Any:
    """Return the prepared request with other ids, that differ after its images alone."""
    return dataclasses.replace(prepared, request=dataclasses.replace(prepared.request, prompt=tuple(ids)))


def context_of(llm: "LLM", asked: Asked) -> int:
    """Tokens that prompt and answer may have together: num_ctx, and never more than the model was loaded with."""
    return min(asked.context or llm.context, llm.context)


def too_long(prompt_tokens: int, limit: int) -> ContextLengthError:
    """Return the error of a prompt that leaves no room for an answer."""
    return ContextLengthError(
        f"the prompt has {prompt_tokens:,} tokens, and prompt and answer may have {limit:,} together.\n"
        "Shorten it, send a larger num_ctx, or start the server with a larger --context."
    )


def _wanted(llm: "LLM", asked: Asked) -> int | None:
    """The longest answer asked for: the request's, else a created model's own."""
    return asked.max_tokens if asked.has_max_tokens else llm.sampling().max_tokens


def _room(llm: "LLM", asked: Asked, limit: int) -> int:
    most = _wanted(llm, asked)
    room = max(1, limit // _ROOM)
    return room if most is None else min(most, room)


def _turn(message: Message, i: int, image_bytes: int) -> Turn:
    role = message.role.lower()
    if role not in _ROLES:
        raise FieldError(
            f"messages[{i}]: the role must be one of {', '.join(_ROLES)}, got {message.role!r:.60}.",
            param=f"messages[{i}].role",
            code="invalid_value",
        )
    text, images = message.content or "", message.images or []
    if role == "tool":
        named = {"name": message.tool_name, "tool_call_id": message.tool_call_id}
        return {"role": role, "content": text} | {key: value for key, value in named.items() if value}
    if message.tool_calls:
        if role != "assistant":
            raise FieldError(f"messages[{i}].tool_calls: only the assistant calls.", param=f"messages[{i}].tool_calls")
        return {"role": role, "content": text, "tool_calls": message.tool_calls}
    if not images:
        return {"role": role, "content": text}
    parts = [image_of(image, f"messages[{i}].images[{j}]", image_bytes) for j, image in enumerate(images)]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def _joined(first: Any, second: Any) -> Any:
    """Two contents as one; texts that touch become one text, because each part is trimmed by itself."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}{_BETWEEN}{second}"
    head, tail = _parts(first), _parts(second)
    if head[-1]["type"] == tail[0]["type"] == "text":
        together = {"type": "text", "text": f"{head[-1]['text']}{_BETWEEN}{tail[0]['text']}"}
        return [*head[:-1], together, *tail[1:]]
    return [*head, *tail]


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    raise FieldError("an answer that is to be continued must be text, and the last message has images.")
