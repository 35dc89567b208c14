"""A JSON schema as its grammar can hold to it: narrower than it was where it must be, or refused.

    closed      objects have the properties they name, and no others
    exact       what the grammar would write and the schema forbids is forbidden: a 30th of February, 2^53 + 1
    unkept      the first keyword that nothing here can keep

JSON schema lets an object have any further property unless it says otherwise. A person who writes one rarely means
that, and a model that may invent properties does not stop. What is valid by a narrower schema is valid by the one that
was given.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Keywords whose value is a schema, a list of schemas, or a table of schemas.
_SCHEMA = ("items", "additionalItems", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SAYS = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
_TABLES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

# From here on integers and the grammar's numbers, which are doubles, are not the same.
_EXACT = 2**53

# Dates as people and `datetime` know them: llguidance's own have a 29th of February in every year and a second 60. No
# year 0000, which `datetime` cannot read.
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-]{_CLOCK})"
_FORMATS = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}[tT]{_TIME}"}

# Beside llguidance's own: no "--" in a label, which would make it one of another alphabet (RFC 5891), and RFC 1123's
# length.
_LABEL = "[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*"
_HOSTNAME = {"pattern": rf"^{_LABEL}(?:\.{_LABEL})*$", "maxLength": 253}


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


def _with_parts(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of a schema whose direct parts were changed."""
    made: dict[str, Any] = {k: list(v) if isinstance(v, list) else v for k, v in schema.items()}
    for keyword, key, part in _parts(schema):
        if key is None:
            made[keyword] = change(part)
        else:
            if made[keyword] is schema[keyword]:
                made[keyword] = dict(schema[keyword])
            made[keyword][key] = change(part)
    return made


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
    made = _with_parts(schema, _close)
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


def exact(schema: Any) -> Any:
    """Return the schema with dates, times and host names by patterns of our own, and bounds beyond 2^53 moved inside.

    After `closed`: it may add an allOf, to strings.
    """
    if not isinstance(schema, Mapping):
        return schema
    made = _with_parts(schema, exact)
    pattern = _FORMATS.get(made["format"]) if isinstance(made.get("format"), str) else None
    if pattern is not None:
        del made["format"]
        pattern = f"^(?:{pattern})$"
        if "pattern" in made:
            made["allOf"] = [*made.get("allOf", []), {"pattern": pattern}]
        else:
            made["pattern"] = pattern
    if made.get("format") == "hostname":
        made["allOf"] = [*made.get("allOf", []), _HOSTNAME]
    for keyword, inward in (("minimum", math.inf), ("maximum", -math.inf)):
        for name in (keyword, f"exclusive{keyword.capitalize()}"):
            if _is_huge(made.get(name)):
                made[name] = _inside(made[name], inward)
    return made


def unkept(schema: Any) -> str | None:
    """Return what of a schema cannot be kept and would not be refused by its grammar; None where all can."""
    if not isinstance(schema, Mapping):
        return None
    for keyword in ("const", "enum"):
        if keyword in schema and (number := _huge_in(schema[keyword])) is not None:
            return f"{keyword} has {number}, and integers beyond 2^53 are not told apart. Write it as a text"
    least, needed = schema.get("minProperties"), schema.get("required", [])
    if isinstance(least, int) and isinstance(needed, list) and least - len(needed) > 1:
        return (
            f"minProperties asks for {least - len(needed)} properties beside those that are required, "
            "and names that nobody gives may repeat. Name and require them"
        )
    return next((told for _, _, part in _parts(schema) if (told := unkept(part)) is not None), None)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT


def _huge_in(value: Any) -> int | None:
    """The first integer of a JSON value that no double is sure to be."""
    if isinstance(value, (list, Mapping)):
        parts = value.values() if isinstance(value, Mapping) else value
        return next((found for part in parts if (found := _huge_in(part)) is not None), None)
    return value if _is_huge(value) else None


def _inside(bound: int, inward: float) -> int | float:
    """The double nearest to a bound that does not pass it."""
    try:
        near = float(bound)
    except OverflowError:
        return bound
    passes = near < bound if inward > 0 else near > bound
    return int(math.nextafter(near, inward)) if passes else int(near)
