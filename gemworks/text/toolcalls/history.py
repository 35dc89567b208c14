"""Conversations with calls, told in words: Gemma 3 has no role and no token for them.

    first user turn      the instructions, the functions as a JSON array, then what the user says
    assistant's calls    as the model writes them in this style, so that a prompt goes on where an answer ended
    results of tools     one user turn for all that follow one another, and for what the user says after them

Everything here is text: what a result, an argument or a declaration holds never becomes a control token. The two
styles are those of https://ai.google.dev/gemma/docs/capabilities/function-calling; for results it prescribes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemworks.errors import RequestError
from gemworks.text.toolcalls.call import compact
from gemworks.text.toolcalls.declared import Style, Toolset

Message = Mapping[str, Any]

_ASKED = (
    "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format of"
)
_ONLY = "You SHOULD NOT include any other text in the response if you call a function"
_FORMATS = {
    "python": "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]",
    "json": '{"name": function name, "parameters": dictionary of argument name and its value}',
}
_BETWEEN = "\n\n"


def speaks_of_calls(messages: Sequence[Message]) -> bool:
    """Whether a conversation holds calls or results of tools."""
    return any(
        isinstance(message, Mapping) and (message.get("role") == "tool" or message.get("tool_calls"))
        for message in messages
    )


def instructions(toolset: Toolset) -> str:
    """Return what a model is told of the functions it may call, "" where it may call none."""
    if not toolset.callable:
        return ""
    listed = ",\n".join(json.dumps(one.told(), ensure_ascii=False) for one in toolset.callable)
    return f"{_ASKED}\n{_FORMATS[toolset.style]}\n{_ONLY}\n[\n{listed}\n]"


def plain_messages(messages: Sequence[Message], style: Style, told: str = "") -> list[Message]:
    """Return a conversation of system, user and assistant messages that says what this one does.

    told: instructions for the first user turn. Raises RequestError that names the message.
    """
    said: list[Message] = []
    results: list[str] = []
    for i, message, names in with_names(messages):
        if message.get("role") == "tool":
            [name] = names
            results.append(f"Result of {name}:\n```tool_output\n{text_of(message, i)}\n```")
            continue
        if results and message.get("role") != "user":
            said.append({"role": "user", "content": _BETWEEN.join(results)})
            results = []
        if names:
            calls = written(calls_of(message, i), style)
            said.append({"role": "assistant", "content": "\n".join(filter(None, (text_of(message, i), calls)))})
        elif results:
            said.append({**message, "content": _before(_BETWEEN.join(results), message.get("content"))})
            results = []
        else:
            said.append(message)
    if results:
        said.append({"role": "user", "content": _BETWEEN.join(results)})
    return _instructed(said, told) if told else said


def _instructed(said: list[Message], told: str) -> list[Message]:
    for i, message in enumerate(said):
        if message.get("role") == "user":
            return [*said[:i], {**message, "content": _before(told, message.get("content"))}, *said[i + 1 :]]
    return said


def with_names(messages: Sequence[Message]) -> list[tuple[int, Message, list[str]]]:
    """Return (its place, the message, names) of each message: of calls what they call, of a result what it is of.

    A result belongs to the call with its id; without one to the call of its name, else to the first that has no result.
    Raises RequestError for a result of no call.
    """
    told, open_calls = [], []
    for i, message in enumerate(messages):
        names: list[str] = []
        if isinstance(message, Mapping) and message.get("role") == "tool":
            names = [_answered(message, open_calls, i)]
        elif isinstance(message, Mapping) and message.get("tool_calls"):
            if message.get("role") not in ("assistant", "model"):
                raise RequestError(f"messages[{i}].tool_calls: calls are the assistant's, got {message.get('role')!r}.")
            names = [name for name, _ in calls_of(message, i)]
            open_calls = [(one.get("id"), name) for one, name in zip(message["tool_calls"], names, strict=True)]
        told.append((i, message, names))
    return told


def _answered(message: Message, open_calls: list[tuple[Any, str]], i: int) -> str:
    wanted, name = message.get("tool_call_id"), message.get("name") or message.get("tool_name")
    for at, (call_id, called) in enumerate(open_calls):
        if (call_id == wanted) if wanted is not None else (name in (None, called)):
            del open_calls[at]
            return called
    if wanted is None and isinstance(name, str):
        return name  # a conversation whose beginning was left out
    asked = f"tool_call_id {wanted!r:.80}" if wanted is not None else "a tool's message"
    raise RequestError(f"messages[{i}]: a tool's result must answer a call before it, got {asked}, which answers none.")


def calls_of(message: Message, i: int) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, arguments) of the calls of an assistant's message. Raises RequestError that names the call."""
    calls = message["tool_calls"]
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(f"messages[{i}].tool_calls must be a list of calls, got {type(calls).__name__}.")
    found = []
    for j, call in enumerate(calls):
        where = f"messages[{i}].tool_calls[{j}]"
        inside = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(inside, Mapping) or not isinstance(inside.get("name"), str):
            raise RequestError(f'{where} must be {{"id", "function": {{"name", "arguments"}}}}, got {call!r:.80}.')
        arguments = inside.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{where}.function.arguments must be JSON, got: {error}.") from None
        if not isinstance(arguments, Mapping):
            raise RequestError(f"{where}.function.arguments must be an object, got {arguments!r:.80}.")
        found.append((inside["name"], dict(arguments)))
    return found


def written(calls: Sequence[tuple[str, dict[str, Any]]], style: Style) -> str:
    """Return calls as a model writes them."""
    if style == "json":
        texts = [f'{{"name": {compact(name)}, "parameters": {compact(arguments)}}}' for name, arguments in calls]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return f"[{', '.join(f'{name}({_keywords(arguments)})' for name, arguments in calls)}]"


def is_keyword(name: str) -> bool:
    """Whether an argument of this name is written name=value; others stand in **{...}."""
    return name.isascii() and name.isidentifier()


def _keywords(arguments: Mapping[str, Any]) -> str:
    if not all(map(is_keyword, arguments)):
        return f"**{compact(arguments)}"
    return ", ".join(f"{name}={compact(value)}" for name, value in arguments.items())


def text_of(message: Message, i: int) -> str:
    """Return what a message says, which must be text. Raises RequestError."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    parts = content if isinstance(content, Sequence) else [content]
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f"messages[{i}].content must be text here, got {part!r:.80}.")
    return "".join(part["text"].strip() for part in parts)


def _before(text: str, content: Any) -> Any:
    """A message's content with a text before it."""
    if isinstance(content, str):
        return f"{text}{_BETWEEN}{content.strip()}"
    if isinstance(content, Sequence) and content:
        first = content[0]
        if isinstance(first, Mapping) and first.get("type") == "text" and isinstance(first.get("text"), str):
            return [{"type": "text", "text": f"{text}{_BETWEEN}{first['text'].strip()}"}, *content[1:]]
        return [{"type": "text", "text": text}, *content]
    return content  # what is wrong with it is told where it is rendered
