"""What calls of tools and answers of a given form pass through: no API drops one of these fields silently.

Forms become arguments of LLM.prepare. Tools are refused by name until they are supported.
"""

import json
from collections.abc import Mapping
from typing import Any

from gemworks.server.asking import in_thread
from gemworks.server.errors import FieldError, TooLargeError, UnsupportedError
from gemworks.text import grammar

_NOT_YET = "Leave it out; this release calls no tools."

# vLLM's name of a form, and its older one -> what makes it.
_VLLM = ("json", "json_object", "regex", "choice", "grammar")


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for the first of these fields that asks for more than text.

    fields: name as the caller wrote it -> value; None is the same as not given.
    """
    for name, value in fields.items():
        last = name.rsplit(".", 1)[-1]
        if value is None or value == [] or value == "":
            continue
        if last == "tool_choice" and value in ("none", "auto"):
            continue  # without tools both mean what happens
        if last == "parallel_tool_calls" and isinstance(value, bool):
            continue  # how many at once, of none
        raise UnsupportedError(name, _NOT_YET)


async def form_arguments(fields: Mapping[str, Any], schema_bytes: int) -> dict[str, Any]:
    """Return the keywords of LLM.prepare for the form that an answer must have, none where any text will do.

    fields: response_format, text.format, structured_outputs and guided_* as they came. schema_bytes: the longest schema
    or grammar. Raises FieldError; what a schema's own words say is checked when the call is prepared.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    return await in_thread(lambda: _form(given, schema_bytes)) if given else {}


def _form(given: Mapping[str, Any], schema_bytes: int) -> dict[str, Any]:
    forms: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        length = len(value) if isinstance(value, str) else len(json.dumps(value))
        if length > schema_bytes:
            raise TooLargeError(f"{name} has {length:,} characters; this server takes {schema_bytes:,}.", param=name)
        if name.startswith("guided_"):
            forms[name] = _vllm(name, name.removeprefix("guided_"), value)
        elif name == "structured_outputs":
            forms |= _structured(value)
        else:
            forms[name] = _openai(name, value)
    asked = {name: form for name, form in forms.items() if form}
    if len(asked) > 1:
        raise FieldError(f"an answer has one form, got {' and '.join(asked)}.", param=next(iter(asked)))
    return next(iter(asked.values()), {})


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
