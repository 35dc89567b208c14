"""Objects of a JSON schema that have the properties they name, and no others.

JSON schema lets an object have any further property unless it says otherwise. A person who writes one rarely means
that, and a model that may invent properties does not stop. So a grammar is made of the narrower schema; what is valid
by it is valid by the one that was given.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# Keywords whose value is a schema, a list of schemas, or a table of schemas.
_SCHEMA = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SAYS = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
_TABLES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def _parts(schema: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every schema directly in a schema: its keyword, its key or place there (None for a single one), itself."""
    if not isinstance(schema, Mapping):
        return
    for keyword, value in schema.items():
        if keyword in _SCHEMA and not isinstance(value, list):
            yield keyword, None, value
        elif keyword in (*_SCHEMAS, "items") and isinstance(value, list):
            yield from ((keyword, i, part) for i, part in enumerate(value))
        elif keyword in _TABLES and isinstance(value, Mapping):
            yield from ((keyword, key, part) for key, part in value.items())


def _combines(schema: Any) -> bool:
    """Whether somewhere an object is described in two places, so that neither knows all of its properties."""
    if not isinstance(schema, Mapping):
        return False
    apart = "allOf" in schema or ("properties" in schema and any(word in schema for word in ("anyOf", "oneOf", "$ref")))
    return apart or any(_combines(part) for _, _, part in _parts(schema))


def _close(schema: Any) -> Any:
    """A schema whose objects have the properties they name and no others, where they do not say it."""
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {k: list(v) if isinstance(v, list) else v for k, v in schema.items()}
    for keyword, key, part in _parts(schema):
        if key is None:
            made[keyword] = _close(part)
        else:
            if made[keyword] is schema[keyword]:
                made[keyword] = dict(schema[keyword])
            made[keyword][key] = _close(part)
    if _names_all(made):
        made["additionalProperties"] = False
    return made


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Whether an object can be valid with the properties it names alone, and does not speak of others."""
    names, needed, least = schema.get("properties"), schema.get("required", []), schema.get("minProperties", 0)
    if not isinstance(names, Mapping) or not names or _SAYS & schema.keys():
        return False
    return isinstance(needed, list) and all(name in names for name in map(str, needed)) and least <= len(names)


def closed(schema: Any) -> Any:
    """Return the schema with every object closed that does not say additionalProperties itself.

    One that combines descriptions of an object (allOf, or properties beside anyOf, oneOf or $ref) is returned as it is.
    """
    return schema if _combines(schema) else _close(schema)
