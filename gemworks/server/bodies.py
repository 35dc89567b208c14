"""The body of a request as a checked object; whatever is wrong with it is one FieldError that names the field.

Strict, as OpenAI is: "1" is no number, 1.5 no whole one, true neither, and NaN and Infinity are not JSON.
"""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from gemworks.server.errors import FieldError

# Beyond this (an image, a long chat) parsing and checking is done in a thread, so that other streams go on.
_LARGE_BYTES = 200_000

_Body = TypeVar("_Body", bound=BaseModel)


class Body(BaseModel):
    """Base of bodies: strict types, no NaN, no unknown field."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


async def read_body(request: Request, model: type[_Body]) -> _Body:
    """Return the request's body as `model`. Raises FieldError."""
    data = await request.body()
    if len(data) > _LARGE_BYTES:
        return await asyncio.to_thread(parse_body, data, model)
    return parse_body(data, model)


def parse_body(data: bytes, model: type[_Body]) -> _Body:
    """Return bytes of JSON as `model`. Raises FieldError."""
    try:
        parsed = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise FieldError(f"The body must be JSON in UTF-8: {error}.", code="invalid_json") from None
    if not isinstance(parsed, dict):
        raise FieldError(f"The body must be a JSON object, got {_shown(parsed)}.", code="invalid_json")
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        raise _first(error) from None
    except RecursionError:
        raise FieldError("The body must not be nested as deep as this one.", code="invalid_json") from None


def place(loc: tuple[Any, ...]) -> str:
    """Return a path into a body as people write it: messages[0].content."""
    told = ""
    for part in loc:
        told += f"[{part}]" if isinstance(part, int) else f".{part}" if told else str(part)
    return told


def _first(error: ValidationError) -> FieldError:
    """The first defect, an unknown field last: what is wrong with a known one is more likely meant."""
    found = error.errors(include_url=False, include_context=True)
    first = next((one for one in found if one["type"] != "extra_forbidden"), found[0])
    # What a union expects of each of its kinds is told by the kind's name in the path; a field's name is enough.
    param = place(tuple(part for part in first["loc"] if not _is_kind(part)))
    if first["type"] == "extra_forbidden":
        return FieldError(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return FieldError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if first["type"] == "value_error":
        return FieldError(f"{param}: {first.get('ctx', {}).get('error')}", param=param, code="invalid_value")
    told = first["msg"].removeprefix("Input should be").strip()
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return FieldError(f"{param} must be {told}, got {_shown(first['input'])}.", param=param, code=code)


_KINDS = ("str", "int", "float", "bool", "list", "dict", "constrained", "function", "tuple", "literal")


def _is_kind(part: Any) -> bool:
    """Whether a part of a path names the kind a union tried ("list[str]") and not a field."""
    return isinstance(part, str) and (part in _KINDS or part.split("[")[0] in _KINDS)


def _shown(value: Any) -> str:
    """A value in an error: what it is where it is long, itself where it is short."""
    if isinstance(value, (dict, list)):
        return f"an {'object' if isinstance(value, dict) else 'array'}"
    told = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    if told is not None:
        return told
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
