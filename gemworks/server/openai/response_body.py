"""What /v1/responses is asked: its fields, and its input as a conversation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from gemworks.server.bodies import Body
from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.openai import shapes
from gemworks.server.openai.fields import Count, StreamOptions, check_inert, check_top, least_top_p
from gemworks.server.openai.messages import content_of, role_of

if TYPE_CHECKING:
    from gemworks.server.settings import Settings

_LOGPROBS = "message.output_text.logprobs"
# What a response would include of things that no response of ours has: nothing, as asked.
_EMPTY = ("reasoning.encrypted_content",)
_ITEM_FIELDS = {"type", "role", "content", "id", "status", "phase"}
# Of calls and their results: what each must have as text.
_CALL_FIELDS = {"function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id",)}
_CALL_KNOWN = {"type", "id", "status", "call_id", "name", "arguments", "output"}

# Fields that change nothing where they have these values, and are refused with others.
_INERT: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "truncation": ("disabled",),
    "service_tier": ("auto", "default"),
    "reasoning": ({}, {"effort": "none"}),
    "conversation": (),
    "prompt": (),
    "moderation": (),
    "image": (),
    "context_management": ([],),
    "access_programs": (),
    "background_options": (),
}


class ResponseBody(Body):
    """Body of /v1/responses."""

    model: str | None = None
    input: str | list[Any]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    text: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    background: Any = None
    background_options: Any = None
    truncation: Any = None
    service_tier: Any = None
    reasoning: Any = None
    conversation: Any = None
    prompt: Any = None
    moderation: Any = None
    image: Any = None
    context_management: Any = None
    access_programs: Any = None
    # Beyond OpenAI's, as in chat.
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    @property
    def tells_logprobs(self) -> bool:
        """Whether the text comes with log-probabilities."""
        return _LOGPROBS in (self.include or ())


def told_of(body: ResponseBody) -> dict[str, Any]:
    """Return the keywords of LLM.stream. Raises FieldError for what is not supported."""
    text = body.text or {}
    check_inert(body.__dict__, _INERT)
    check_inert({f"text.{name}": value for name, value in text.items()}, {"text.verbosity": ("medium",)})
    if unknown := sorted(set(text) - {"format", "verbosity"}):
        raise FieldError(f"Unknown parameter: 'text.{unknown[0]:.60}'.", param="text", code="unknown_parameter")
    if refused := [one for one in body.include or () if one not in (_LOGPROBS, *_EMPTY)]:
        raise UnsupportedError("include", f"It may have {_LOGPROBS}.", got=refused[0])
    return {
        "temperature": body.temperature,
        "top_p": least_top_p(body.top_p),
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "seed": None if body.seed is None else body.seed % 2**63,
        "max_tokens": body.max_output_tokens,
        "logprobs": body.tells_logprobs,
        "top_logprobs": check_top(body.top_logprobs, "top_logprobs"),
    }


def items_of(given: str | list[Any]) -> list[dict[str, Any]]:
    """Return the input as items with ids, as `input_items` tells them. Raises FieldError."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise FieldError("input must be a text or at least one message.", param="input", code="invalid_value")
    items = []
    for i, item in enumerate(given):
        where = f"input[{i}]"
        if not isinstance(item, Mapping):
            raise FieldError(f"{where} must be an object.", param=where, code="invalid_type")
        if (kind := item.get("type", "message")) in _CALL_FIELDS:
            items.append(_call_item(item, where))
            continue
        if kind != "message":
            known = ", ".join(("message", *_CALL_FIELDS))
            raise UnsupportedError(f"{where}.type", f"Items are of type {known}.", got=kind)
        if unknown := sorted(set(item) - _ITEM_FIELDS):
            param = f"{where}.{unknown[0]}"[:200]
            raise FieldError(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
        if (role := role_of(item.get("role"), where)) == "tool":
            raise UnsupportedError(f"{where}.role", 'A result is an item of type "function_call_output".', got=role)
        content = item.get("content")
        kind = "output_text" if role == "assistant" else "input_text"
        parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
        items.append(
            {
                "id": item.get("id") or shapes.new_id("msg_"),
                "type": "message",
                "status": "completed",
                "role": item["role"],
                "content": parts,
            }
        )
    return items


def _call_item(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call or a result as it is kept. Raises FieldError."""
    kind = item["type"]
    if unknown := sorted(set(item) - _CALL_KNOWN):
        param = f"{where}.{unknown[0]}"[:200]
        raise FieldError(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    for name in _CALL_FIELDS[kind]:
        if not isinstance(item.get(name), str):
            param = f"{where}.{name}"
            raise FieldError(f"{param} must be a text, got {item.get(name)!r:.60}.", param=param, code="invalid_type")
    prefix = "fc_" if kind == "function_call" else "fco_"
    return {**item, "id": item.get("id") or shapes.new_id(prefix), "status": "completed"}


async def messages_of_items(items: list[dict[str, Any]], settings: "Settings") -> list[dict[str, Any]]:
    """Return items as messages, with their images in reach; calls are the message's before them. Raises FieldError."""
    said: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        if item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            if not said or said[-1]["role"] != "assistant":
                said.append({"role": "assistant", "content": None})
            said[-1].setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": told})
        elif item["type"] == "function_call_output":
            output = item.get("output")
            content = "" if output in (None, "", []) else await content_of(output, f"input[{i}].output", settings)
            said.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        else:
            role = role_of(item["role"], f"input[{i}]")
            said.append({"role": role, "content": await content_of(item["content"], f"input[{i}].content", settings)})
    return said


def conversation_of(instructions: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation with `instructions` and system messages before it as one system message."""
    said = [instructions] if instructions else []
    start = 0
    while start < len(messages) and messages[start]["role"] == "system":
        said.append(_text(messages[start]["content"]))
        start += 1
    system = [{"role": "system", "content": "\n\n".join(said)}] if said else []
    return [*system, *messages[start:]]


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    if any(part["type"] != "text" for part in content):
        raise FieldError("a system message must be text.", param="input", code="invalid_value")
    return "".join(part["text"] for part in content)
