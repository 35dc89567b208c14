"""What calls of tools and answers of a given form pass through: no API drops one of these fields silently.

All of them become arguments of LLM.prepare, which checks what they say.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gemworks.errors import RequestError
from gemworks.server.asking import in_thread
from gemworks.server.errors import FieldError, TooLargeError, UnsupportedError
from gemworks.text import grammar

# vLLM's name of a form, and its older one -> what makes it.
_VLLM = ("json", "json_object", "regex", "choice", "grammar")


def tool_arguments(tools: Any, choice: Any, parallel: bool | None, schema_bytes: int) -> dict[str, Any]:
    """Return the keywords of LLM.prepare for tools as the APIs send them, none where there are none.

    Functions may stand in "function", as in chats, or one level higher, as in responses. Raises FieldError.
    """
    if tools is not None and not isinstance(tools, list):
        raise _wrong("tools", "a list of functions", tools)
    told = {"tool_choice": choice, "parallel_tool_calls": parallel}
    return told | {"tools": [_tool(tool, f"tools[{i}]", schema_bytes) for i, tool in enumerate(tools or ())]}


def _tool(tool: Any, where: str, schema_bytes: int) -> dict[str, Any]:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or not isinstance(kind, str):
        raise _wrong(where, 'an object with "type": "function"', tool)
    if kind != "function":
        raise UnsupportedError(f"{where}.type", "Tools are functions that the caller runs.", got=kind)
    inside = tool.get("function") if "function" in tool else {k: v for k, v in tool.items() if k != "type"}
    if not isinstance(inside, Mapping):
        raise _wrong(f"{where}.function", "an object with a name", inside)
    if (length := len(json.dumps(inside.get("parameters")))) > schema_bytes:
        name = f"{where}.function.parameters"
        raise TooLargeError(f"{name} has {length:,} characters; this server takes {schema_bytes:,}.", param=name)
    return {"type": "function", "function": dict(inside)}


async def form_arguments(fields: Mapping[str, Any], schema_bytes: int) -> dict[str, Any]:
    """Return the keywords of LLM.prepare for the form that an answer must have, none where any text will do.

    fields: response_format, text.format, structured_outputs and guided_* as they came. schema_bytes: the longest schema
    or grammar. Raises FieldError, for what a schema itself says too.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    return await in_thread(lambda: _form(given, schema_bytes)) if given else {}


def _form(given: Mapping[str, Any], schema_bytes: int) -> dict[str, Any]:
    forms: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        length = len(value) if isinstance(value, str) else len(json.dumps(value))
        if length > schema_bytes:
            raise TooLargeError(f"{name} has {length:,} characters; this server takes {schema_bytes:,}.", param=name)
        with _named(name):
            if name.startswith("guided_"):
                forms[name] = _vllm(name, name.removeprefix("guided_"), value)
            elif name == "structured_outputs":
                forms |= _structured(value)
            else:
                forms[name] = _openai(name, value)
    asked = {name: form for name, form in forms.items() if form}
    if len(asked) > 1:
        raise FieldError(f"an answer has one form, got {' and '.join(asked)}.", param=next(iter(asked)))
    for name, form in asked.items():
        if "schema" in form:
            with _named("text.format.schema" if name == "text.format" else name):
                grammar.json_schema(form["schema"])  # kept: `prepare` does not compile it again
    return next(iter(asked.values()), {})


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the field in what a form itself is refused with."""
    try:
        yield
    except FieldError:
        raise
    except RequestError as error:
        raise FieldError(str(error), param=name, code="invalid_value") from None


def _openai(name: str, value: Any) -> dict[str, Any]:
    """response_format of the chat API, or text.format of a response, whose schema stands one level higher."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"grammar": grammar.json_object()}
    if kind != "json_schema":
        raise _wrong(name, 'an object with "type": "text", "json_object" or "json_schema"', value)
    inside = value if name == "text.format" else value.get("json_schema")
    if not isinstance(inside, Mapping) or not isinstance(inside.get("schema"), Mapping):
        raise _wrong(f"{name}.json_schema" if inside is not value else name, 'an object with a "schema"', inside)
    return {"schema": inside["schema"]}


def _structured(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise _wrong("structured_outputs", "an object", value)
    found = {}
    for name, form in value.items():
        where = f"structured_outputs.{name}"[:100]
        if name in _VLLM and form is not None:
            found[where] = _vllm(where, name, form)
        elif name not in _VLLM and form not in (None, False):
            raise UnsupportedError(where)
    return found


def _vllm(where: str, kind: str, value: Any) -> dict[str, Any]:
    if kind == "json" and isinstance(value, (str, Mapping)):
        return {"schema": value}
    if kind == "json_object" and isinstance(value, bool):
        return {"grammar": grammar.json_object()} if value else {}
    if kind == "regex" and isinstance(value, str):
        return {"grammar": grammar.regex(value)}
    if kind == "choice" and isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return {"grammar": grammar.choice(value)}
    if kind == "grammar" and isinstance(value, str):
        return {"grammar": grammar.lark(value)}
    raise _wrong(where, {"json": "a JSON schema", "choice": "a list of texts"}.get(kind, "a text"), value)


def _wrong(name: str, wanted: str, value: Any) -> FieldError:
    return FieldError(f"{name} must be {wanted}, got {value!r:.60}.", param=name, code="invalid_value")
