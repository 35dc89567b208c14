r"""Grammars of calls: what is written has a declared name and arguments that are valid by the declared schema.

    required    start: "[" call (", " call){0,31} "]"
    auto        start: call ("\n" call){0,31} | "[" call ... "]" | object ...       where a call has begun: auto.py

After its calls an answer ends.

Arguments in Python's style are name=VALUE with JSON as values, in the schema's order. Where a schema says more of the
whole object than its properties (anyOf, patternProperties, names that are no words), they are **{...}, which is the
same call in Python.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from gemworks.errors import RequestError
from gemworks.text import grammar
from gemworks.text.closing import closed
from gemworks.text.toolcalls.control import ControlTokens
from gemworks.text.toolcalls.control_forms import control_lines
from gemworks.text.toolcalls.declared import Function, Toolset
from gemworks.text.toolcalls.entries import optional_entries
from gemworks.text.toolcalls.history import is_keyword

# Calls in one answer: a model that repeats itself would call until its tokens are used up.
MOST_CALLS = 32

_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":", "lenient": False}
# What a schema of an object may say for its properties to be written one by one.
_PLAIN = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "title",
        "description",
        "default",
        "examples",
        "$defs",
        "definitions",
        "$schema",
        "$comment",
        "strict",
    }
)
_DEFINITIONS = ("$defs", "definitions")
_TAIL = r'("\n```")?'  # of a fence that was opened before


def calls_grammar(
    toolset: Toolset, form: grammar.Grammar | None = None, tokens: ControlTokens | None = None
) -> grammar.Grammar:
    """Return the form of answers that may call these functions. Raises RequestError that names the schema.

    form: what an answer without calls must be, JSON; with None it is of the calls alone, and in auto mode any text may
    be there instead. tokens: FunctionGemma's, for its style.
    """
    if form is not None and (form.kind != "json" or toolset.style == "json"):
        asked = "tool_style json" if form.kind == "json" else "a grammar"
        raise RequestError(
            f"an answer that may be a call can also have a form that is JSON, and not with {asked}: "
            "they cannot be told apart.\nGive schema with tool_style python, or ask for one of them."
        )
    schema = None
    if form is not None and not toolset.is_required:
        schema = json.dumps(json.loads(form.text)["grammars"][0]["json_schema"])
    told = tuple((one.name, json.dumps(one.parameters), one.where) for one in toolset.callable)
    return _made(told, toolset.style, toolset.is_required, toolset.parallel, schema, tokens)


@lru_cache(maxsize=64)
def _made(
    told: tuple[tuple[str, str, str], ...],
    style: str,
    required: bool,
    parallel: bool,
    schema: str | None,
    tokens: ControlTokens | None,
) -> grammar.Grammar:
    functions = [Function(name, "", json.loads(parameters), where) for name, parameters, where in told]
    for one in functions:
        # Each by itself first, so that an error names its function.
        grammar.json_schema(one.parameters, name=f"{one.where}.function.parameters")
    if style == "functiongemma":
        assert tokens is not None
        most = MOST_CALLS if parallel else 1
        lines = control_lines(functions, tokens, most=most)
    else:
        lines = list(_required(functions, style, parallel) if required or schema else _auto(functions, parallel))
    if schema is not None:
        # Instead of any text, what the schema says.
        lines = [f"start: form | {lines[0].removeprefix('start: ')}", f"form: %json {schema}", *lines[1:]]
    return grammar.lark("\n".join(lines), name="the form of the tools' calls")


def _required(functions: Sequence[Function], style: str, parallel: bool) -> Iterator[str]:
    if style == "json":
        yield f"start: call | {_listed('call', 'call')}" if parallel else "start: call"
        yield from _objects(functions)
    else:
        yield f"start: {_listed('call', 'call', parallel)}"
        yield from _pythons(functions)


def _auto(functions: Sequence[Function], parallel: bool) -> Iterator[str]:
    """Calls in either syntax: what a model was not told it may write all the same."""
    more = (lambda between, call: f' ("{between}" {call}){{0,{MOST_CALLS - 1}}}') if parallel else lambda *_: ""
    alone, listed = f"call{more(chr(92) + 'n', 'call')}", f'"[" call{more(", ", "call")} "]"'
    objects = f'"[" object{more(", ", "object")} "]"'
    yield f"start: ({alone} | {listed} | object | {objects}) {_TAIL}"
    yield from (line.replace("call: ", "object: ", 1) for line in _objects(functions))
    yield from _pythons(functions)


def _listed(first: str, call: str, parallel: bool = True) -> str:
    return f'"[" {first} (", " {call}){{0,{MOST_CALLS - 1}}} "]"' if parallel else f'"[" {first} "]"'


def _objects(functions: Sequence[Function]) -> Iterator[str]:
    """Rules of calls as JSON objects: call, and parameters_i, which is what follows the name."""
    names = [json.dumps("{" + f'"name": "{one.name}"') for one in functions]
    yield "call: " + " | ".join(f"{name} parameters_{i}" for i, name in enumerate(names))
    for i, one in enumerate(functions):
        yield f'parameters_{i}: ", \\"parameters\\": " json_{i} "}}"'
        yield f"json_{i}: %json {_inline(_closed(one))}"


def _pythons(functions: Sequence[Function]) -> Iterator[str]:
    """Rules of calls as in Python: call, and arguments_i, which is what stands in the brackets."""
    yield "call: " + " | ".join(f'{json.dumps(one.name + "(")} arguments_{i} ")"' for i, one in enumerate(functions))
    for i, one in enumerate(functions):
        schema = _closed(one)
        if not _is_plain(schema):
            yield f'arguments_{i}: "**" whole_{i}'
            yield f"whole_{i}: %json {_inline(schema)}"
            continue
        needed = set(schema.get("required", ()))
        shared = {word: schema[word] for word in _DEFINITIONS if word in schema}
        entries = []
        for j, (key, value) in enumerate(schema.get("properties", {}).items()):
            yield f"value_{i}_{j}: %json {_inline(_with(value, shared))}"
            entries.append((json.dumps(f"{key}="), f"value_{i}_{j}", key in needed))
        yield from optional_entries(f"arguments_{i}", entries, ", ")


def _closed(one: Function) -> dict[str, Any]:
    """The schema of a function's arguments without any that it does not name, where it does not speak of others."""
    schema = closed(one.parameters)
    if schema.get("properties") or schema.get("required") or not set(schema) <= _PLAIN - {"additionalProperties"}:
        return schema
    return {**schema, "properties": {}, "additionalProperties": False}


def _is_plain(schema: Mapping[str, Any]) -> bool:
    """Whether its properties can be written one by one as keyword arguments."""
    properties = schema.get("properties", {})
    if not set(schema) <= _PLAIN or not isinstance(properties, Mapping) or not all(map(is_keyword, properties)):
        return False
    if schema.get("additionalProperties", False) is not False or not set(schema.get("required", ())) <= set(properties):
        return False
    inside = json.dumps(properties)
    return all(ref.startswith(("#/$defs/", "#/definitions/")) for ref in re.findall(r'"\$ref": "([^"]*)"', inside))


def _with(value: Any, shared: Mapping[str, Any]) -> Any:
    if value is True or value == {}:
        return {}
    return {**shared, **value} if isinstance(value, Mapping) else {"enum": []}


def _inline(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": _COMPACT})
