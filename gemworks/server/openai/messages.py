"""Messages of the chat API as LLM takes them. What a message may hold and this model cannot use is refused by name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemworks.server.errors import FieldError, UnsupportedError
from gemworks.server.images import image_part

if TYPE_CHECKING:
    from gemworks.server.settings import Settings

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "model": "assistant"}
_ROLES |= {"tool": "tool"}
_KNOWN = {"role", "content", "name", "refusal", "audio", "annotations", "tool_calls", "function_call", "tool_call_id"}
_KNOWN |= {"reasoning_content", "reasoning"}
_TEXTS = ("text", "input_text", "output_text", "refusal")
_IMAGES = ("image_url", "input_image", "image")


async def messages_of(messages: list[Any], settings: "Settings") -> list[dict[str, Any]]:
    """Return a conversation with its images in reach. Raises FieldError that names the message."""
    if not messages:
        raise FieldError("messages must have at least one message.", param="messages", code="invalid_value")
    return [await message_of(message, f"messages[{i}]", settings) for i, message in enumerate(messages)]


async def message_of(message: Any, where: str, settings: "Settings") -> dict[str, Any]:
    """Return one message; `where` is its place in the body."""
    if not isinstance(message, Mapping):
        raise FieldError(f"{where} must be an object with role and content.", param=where, code="invalid_type")
    role = role_of(message.get("role"), where)
    if message.get("function_call"):
        raise UnsupportedError(f"{where}.function_call", "Send tool_calls.")
    if unknown := sorted(set(message) - _KNOWN):
        param = f"{where}.{unknown[0]}"
        raise FieldError(f"Unknown parameter: '{param:.200}'.", param=param[:200], code="unknown_parameter")
    for name in ("name", "audio"):
        if message.get(name) and (role, name) != ("tool", "name"):
            raise UnsupportedError(f"{where}.{name}", "Gemma's turns have a role and nothing else.")
    content = message.get("content")
    if content is None and role == "assistant" and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if role == "tool":
        return await _result_of(message, where, settings)
    calls = message.get("tool_calls")
    if not calls:
        return {"role": role, "content": await content_of(content, f"{where}.content", settings)}
    if role != "assistant":
        raise FieldError(f"{where}.tool_calls: only the assistant calls.", param=f"{where}.tool_calls")
    said = None if content in (None, "", []) else await content_of(content, f"{where}.content", settings)
    return {"role": role, "content": said, "tool_calls": calls}


async def _result_of(message: Mapping[str, Any], where: str, settings: "Settings") -> dict[str, Any]:
    """A tool's result. Which call it answers is checked with the whole conversation."""
    told: dict[str, Any] = {"role": "tool"}
    if not isinstance(call_id := message.get("tool_call_id"), str) or not call_id:
        raise FieldError(
            f"{where}.tool_call_id must be the id of the call that this answers, got {call_id!r:.60}.",
            param=f"{where}.tool_call_id",
            code="invalid_value",
        )
    if isinstance(message.get("name"), str):
        told["name"] = message["name"]
    content = message.get("content")
    said = "" if content in (None, "", []) else await content_of(content, f"{where}.content", settings)
    if not isinstance(said, str) and any(part["type"] != "text" for part in said):
        raise UnsupportedError(f"{where}.content", "A tool's result is text; show images in a user message.")
    return told | {"tool_call_id": call_id, "content": said}


def role_of(role: Any, where: str) -> str:
    """Return a role as LLM knows it. Raises FieldError."""
    if role == "function":
        raise UnsupportedError(f"{where}.role", "Send the role tool with a tool_call_id.", got=role)
    if not isinstance(role, str) or role not in _ROLES:
        raise FieldError(
            f"{where}.role must be system, developer, user, assistant or tool, got {role!r:.60}.",
            param=f"{where}.role",
            code="invalid_value",
        )
    return _ROLES[role]


async def content_of(content: Any, where: str, settings: "Settings") -> str | list[dict[str, Any]]:
    """Return what a message says: a text, or parts of which some are images."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        got = "an empty array" if content == [] else "null" if content is None else type(content).__name__
        raise FieldError(f"{where} must be a text or a list of parts, got {got}.", param=where, code="invalid_type")
    return [await _part(part, f"{where}[{j}]", settings) for j, part in enumerate(content)]


async def _part(part: Any, where: str, settings: "Settings") -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise FieldError(f'{where} must be an object with a "type".', param=where, code="invalid_type")
    if kind in _TEXTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise FieldError(f"{where}.text must be a text.", param=f"{where}.text", code="invalid_type")
        return {"type": "text", "text": text}
    if kind in _IMAGES:
        return await image_part(part, where, settings)
    raise UnsupportedError(f"{where}.type", "Parts are text and image_url.", got=kind)
