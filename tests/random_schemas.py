"""JSON schemas of varied features, made from a seed, and which features one has: for tests of structured answers."""

import random
from collections.abc import Iterator
from typing import Any

NAMES = ("a", "b", "na\u00efve", "\u043a\u043b\u044e\u0447", "c d", "x-y", "\u6f22\u5b57", '"q"')

# What issue and documentation promise; each must come up often enough among the schemas that are tried.
FEATURES = (
    "additionalProperties",
    "allOf",
    "anyOf",
    "bounds",
    "const",
    "enum",
    "format",
    "lengths",
    "multipleOf",
    "nested",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "recursion",
    "ref",
    "several types",
    "sizes",
    "unicode keys",
)


def random_schema(seed: int) -> dict[str, Any]:
    """A schema with some model of which it is true."""
    rng = random.Random(seed)
    made = _some(rng, 0)
    roll = rng.random()
    if roll < 0.15:  # a list in which each knows the next
        node = _object({"v": made, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, ["v", "next"])
        return {"$defs": {"n": node}, "$ref": "#/$defs/n"}
    if roll < 0.3:  # a tree
        node = _object({"\u00e4st": made, "kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}}, ["kids"])
        return node
    if roll < 0.45:  # the same description twice
        return {"$defs": {"p": made}, **_object({n: {"$ref": "#/$defs/p"} for n in rng.sample(NAMES, 2)}, [])}
    return made


def features_of(schema: Any) -> set[str]:
    """The FEATURES that a schema has."""
    found = set()
    for node, depth in _walk(schema, 0):
        found |= node.keys() & set(FEATURES)
        found |= {"nested"} if depth >= 2 else set()
        found |= {"bounds"} if node.keys() & {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} else set()
        found |= {"lengths"} if node.keys() & {"minLength", "maxLength"} else set()
        found |= {"sizes"} if node.keys() & {"minItems", "maxItems", "minProperties", "maxProperties"} else set()
        found |= {"several types"} if isinstance(node.get("type"), list) else set()
        found |= {"ref"} if "$ref" in node else set()
        found |= {"recursion"} if node.get("$ref") in ("#", "#/$defs/n") and depth > 0 else set()
        found |= {"unicode keys"} if not all(name.isascii() for name in node.get("properties", ())) else set()
    return found


def _walk(schema: Any, depth: int) -> Iterator[tuple[dict[str, Any], int]]:
    if not isinstance(schema, dict):
        return
    yield schema, depth
    for keyword in ("properties", "patternProperties", "$defs"):
        for part in schema.get(keyword, {}).values():
            yield from _walk(part, depth + (keyword != "$defs"))
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for part in schema.get(keyword, []):
            yield from _walk(part, depth + (keyword == "prefixItems"))
    for keyword in ("items", "additionalProperties"):
        yield from _walk(schema.get(keyword), depth + 1)


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _some(rng: random.Random, depth: int) -> dict[str, Any]:
    if depth >= 3 or (depth and rng.random() < 0.4):
        return rng.choice(_SIMPLE)(rng)
    return rng.choice(_NESTED)(rng, depth + 1)


_PATTERNS = (
    "^[a-f]{2,4}$",
    r"^\d+-\d+$",
    "^(ab|cd)*x$",
    "[0-9]{2}",
    "^\u00e9+[\u03b1-\u03c9]$",
    r"^[A-Z][a-z]+( [A-Z]\.)?$",
)
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "duration", "hostname", "ipv6", "uri")
_VALUES = ("a", "\u00e9", 3, None, True, {"b": [1]}, "\u6f22\u5b57", 'q"\\', -0.5, 1e3, [], {}, "", "a\nb")

_SIMPLE = (
    lambda r: {"type": "integer", "minimum": r.randint(-9, 5), "maximum": r.randint(6, 999)},
    lambda r: {"type": "number", "exclusiveMinimum": r.randint(-9, 0), "maximum": r.randint(1, 99) + 0.5},
    lambda r: {"type": "number", "minimum": 0.25, "exclusiveMaximum": r.choice([0.3, 7.125, 1e3])},
    lambda r: {"type": "integer", "multipleOf": r.choice([2, 3, 7, 10])},
    lambda r: {"type": "number", "multipleOf": r.choice([0.5, 0.25]), "minimum": 0, "maximum": 100},
    lambda r: {"type": "string", "minLength": r.randint(0, 2), "maxLength": r.randint(3, 9)},
    lambda r: {"type": "string", "pattern": r.choice(_PATTERNS)},
    lambda r: {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 5},
    lambda r: {"type": "string", "format": r.choice(FORMATS)},
    lambda r: {"enum": r.sample(_VALUES, 3)},
    lambda r: {"type": "string", "enum": ["x", 3, "\u00fc"]},
    lambda r: {"const": r.choice([1.5, "x", None, [1, "two"], {"k": "v"}, 0, False, "\U0001f600"])},
    lambda r: {"type": r.choice(["boolean", "null"])},
    lambda r: {"type": ["string", "null"], "maxLength": 5},
    lambda r: {"type": ["integer", "boolean", "array"], "maximum": 9, "minimum": 0, "maxItems": 1},
)


def _properties(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(1, 4))
    more = rng.choice(
        [{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer", "maximum": 9}}]
    )
    made = _object({name: _some(rng, depth) for name in names}, rng.sample(names, rng.randint(0, len(names))))
    return made | more


def _tagged(rng: random.Random, depth: int) -> dict[str, Any]:
    """Objects told apart by a constant."""
    kinds = [_object({"kind": {"const": kind}, "v": _some(rng, depth)}, ["kind"]) for kind in ("cat", "d\u00f6g")]
    return {"oneOf": kinds}


_NESTED = (
    _properties,
    _properties,
    _properties,
    _tagged,
    lambda r, d: {"type": "array", "items": _some(r, d), "minItems": r.randint(0, 2), "maxItems": r.randint(2, 4)},
    lambda r, d: {"type": "array", "prefixItems": [_some(r, d), _some(r, d)], "items": False, "minItems": 2},
    lambda r, d: {"type": "array", "prefixItems": [_some(r, d)], "items": {"type": "boolean"}, "maxItems": 3},
    lambda r, d: {"anyOf": [_some(r, d), _some(r, d)]},
    lambda r, d: {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "boolean"}, {"type": "null"}]},
    lambda r, d: {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    lambda r, d: {"allOf": [_object({"a": _some(r, d)}, ["a"]), {"properties": {"b": {"type": "null"}}}]},
    lambda r, d: {"type": "object", "patternProperties": {"^k[0-9]$": _some(r, d)}, "additionalProperties": False},
    lambda r, d: _object({"a": _some(r, d)}, ["a"]) | {"maxProperties": 3},
    lambda r, d: {"type": "object", "additionalProperties": _some(r, d), "minProperties": 1, "maxProperties": 2},
    lambda r, d: _object({"\u00e9": _some(r, d), "f": {}}, []) | {"minProperties": 1, "additionalProperties": False},
)
