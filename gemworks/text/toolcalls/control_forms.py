"""Grammars of calls with FunctionGemma's tokens: its values are no JSON, so schemas become rules here.

    {city:<escape>Paris<escape>,days:2,tags:[<escape>a<escape>]}

Numbers, true, false and null are as in JSON, and their schemas are llguidance's. Texts, lists and objects are not. A
keyword that has no rule here is refused by name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemworks.errors import RequestError
from gemworks.text.closing import closed
from gemworks.text.toolcalls.control import CALL, CALLED, ESCAPE, MARKS, ControlTokens, ordered, written_value
from gemworks.text.toolcalls.declared import Function
from gemworks.text.toolcalls.entries import optional_entries

_SAID = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "nullable",
        "$schema",
        "$comment",
        "$defs",
        "definitions",
        "strict",
    }
)
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_KEYWORDS = {
    "string": ("pattern", "minLength", "maxLength"),
    "integer": _NUMBERS,
    "number": _NUMBERS,
    "boolean": (),
    "null": (),
    "array": ("items", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
_BARE = re.compile(r"[\w.-]+")
_ANY = r"(.|\n)"


def control_lines(functions: Sequence[Function], tokens: ControlTokens, *, most: int) -> list[str]:
    """Return a Lark grammar's lines for answers that call these functions. Raises RequestError.

    most: calls in one answer, which are all it has.
    """
    form = _Form(tokens)
    calls = [f'"call:{one.name}" {form.root(one)}' for one in functions]
    lines = [
        f"start: call{{1,{most}}}",
        f"call: {form.token(CALL)} ({' | '.join(calls)}) {form.token(CALLED)}",
    ]
    return [*lines, *form.lines]


class _Form:
    """Rules as they are made; `value` returns the name of a schema's rule."""

    def __init__(self, tokens: ControlTokens):
        self._tokens = dict(zip(MARKS, tokens.ids, strict=True))
        self.lines: list[str] = []
        self._count = 0
        self._whole: Any = {}  # the schema that references are in
        self._references: dict[str, str] = {}
        self._where = ""
        self._any = ""

    def token(self, mark: str) -> str:
        """A control token in a rule."""
        return f"<[{self._tokens[mark]}]>"

    def root(self, function: Function) -> str:
        """The rule of a function's arguments."""
        self._whole, self._references = closed(function.parameters), {}
        self._where = f"{function.where}.function.parameters"
        if not self._whole.get("properties") and set(self._whole) <= {"type", "properties", *_SAID}:
            return self._rule('"{}"')
        return self.value(self._whole)

    def value(self, schema: Any) -> str:
        """The rule of a value."""
        if schema is True or (isinstance(schema, Mapping) and not set(schema) - _SAID):
            return self._anything()
        if not isinstance(schema, Mapping):
            raise self._refused("false")
        if "$ref" in schema:
            return self._reference(schema["$ref"], set(schema) - {"$ref"})
        if "const" in schema or "enum" in schema:
            return self._values([schema["const"]] if "const" in schema else schema["enum"], schema)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                self._only(schema, {word})
                return self._rule(" | ".join(self.value(one) for one in schema[word]))
        kinds = schema.get("type", [kind for kind, words in _KEYWORDS.items() if set(words) & set(schema)])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not kinds:
            raise self._refused(next(iter(set(schema) - _SAID)))
        self._only(schema, {"type", *(word for kind in kinds for word in _KEYWORDS.get(kind, ()))})
        return self._rule(" | ".join(self._typed(kind, schema) for kind in kinds))

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "string":
            return self._text(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            return self._object(schema)
        told = {"type": kind} | {word: schema[word] for word in _KEYWORDS[kind] if word in schema}
        return self._rule(f"%json {json.dumps(told)}")

    def _text(self, schema: Mapping[str, Any]) -> str:
        escape, least, most = self.token(ESCAPE), schema.get("minLength", 0), schema.get("maxLength")
        if most == 0:
            return self._rule(f"{escape} {escape}")
        regex = f"/{_ANY}{{{max(least, 1)},{'' if most is None else most}}}/"
        if "pattern" in schema:
            regex = f"{_pattern(schema['pattern'])} & {regex}"
        name = f"TEXT_{self._next()}"
        self.lines.append(f"{name}: {regex}")
        may_be_empty = least == 0 and re.search(schema.get("pattern", ""), "") is not None
        return self._rule(f"{escape} {name}{'?' if may_be_empty else ''} {escape}")

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self.value(schema.get("items", True))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return self._rule('"[]"')
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return self._rule(f'"[" {item} {more} "]"' + (' | "[]"' if least == 0 else ""))

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties, needed = schema.get("properties", {}), set(schema.get("required", ()))
        if schema.get("additionalProperties", False) is not False or not needed <= set(properties):
            raise self._refused("additionalProperties")
        if odd := [key for key in properties if not _BARE.fullmatch(key)]:
            raise self._refused(f"the property {odd[0]!r:.60}")
        rule = f"object_{self._next()}"
        entries = [(json.dumps(f"{key}:"), self.value(properties[key]), key in needed) for key in ordered(properties)]
        self.lines += optional_entries(f"{rule}_entries", entries, ",")
        self.lines.append(f'{rule}: "{{" {rule}_entries "}}"')
        return rule

    def _reference(self, path: str, beside: set[str]) -> str:
        if beside - _SAID:
            raise self._refused(f"{sorted(beside - _SAID)[0]} beside $ref")
        if path not in self._references:
            found: Any = self._whole
            for part in path.removeprefix("#").split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                found = found.get(part) if isinstance(found, Mapping) else None
            if not path.startswith("#") or found is None:
                raise self._refused(f"$ref {path!r:.60}")
            self._references[path] = name = f"reference_{self._next()}"
            self.lines.append(f"{name}: {self.value(found)}")
        return self._references[path]

    def _values(self, values: Sequence[Any], schema: Mapping[str, Any]) -> str:
        self._only(schema, {"const", "enum", "type"})
        return self._rule(" | ".join(self._literal(value) for value in values))

    def _literal(self, value: Any) -> str:
        parts = re.split(f"([{''.join(MARKS)}])", written_value(value))
        return " ".join(self.token(one) if one in MARKS else json.dumps(one) for one in parts if one)

    def _anything(self) -> str:
        if not self._any:
            self._any = any_ = f"any_{self._next()}"
            escape = self.token(ESCAPE)
            self.lines += [
                f"{any_}: {escape} {any_.upper()}_TEXT? {escape} | {any_}_plain | {any_}_list | {any_}_object",
                f"{any_.upper()}_TEXT: /{_ANY}+/",
                f'{any_}_plain: %json {{"type": ["number", "boolean", "null"]}}',
                f'{any_}_list: "[" ({any_} ("," {any_})*)? "]"',
                f'{any_}_object: "{{" ({any_}_entry ("," {any_}_entry)*)? "}}"',
                f'{any_}_entry: /[A-Za-z_][A-Za-z0-9_]*/ ":" {any_}',
            ]
        return self._any

    def _only(self, schema: Mapping[str, Any], known: set[str]) -> None:
        if unknown := sorted(set(schema) - known - _SAID):
            raise self._refused(unknown[0])

    def _rule(self, text: str) -> str:
        name = f"rule_{self._next()}"
        self.lines.append(f"{name}: {text}")
        return name

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _refused(self, what: str) -> RequestError:
        return RequestError(
            f"{self._where} cannot be followed with tool_style functiongemma: {what}.\n"
            "Change it, or use tool_style json or python."
        )


def _pattern(pattern: str) -> str:
    """A pattern as a terminal: JSON schema looks for it anywhere in the text."""
    before, after = ("" if pattern.startswith("^") else f"{_ANY}*"), ("" if pattern.endswith("$") else f"{_ANY}*")
    inner = pattern.removeprefix("^")
    inner = inner.removesuffix("$") if not pattern.endswith("\\$") else inner
    if re.search(r"(?<!\\)[$]|(?<![\\[])\^", inner):
        raise RequestError(f"the pattern {pattern!r:.80} cannot be followed with tool_style functiongemma.")
    return f"/{before}({inner.replace('/', chr(92) + '/')}){after}/"
