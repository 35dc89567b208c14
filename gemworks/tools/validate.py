"""Values against JSON schemas, with messages that a model can act on."""

import json
from typing import Any

from gemworks.errors import ConfigError

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MOST_SHOWN = 5
_INSTALL = 'pip install "gemworks[tools]"'


class Schema:
    """One compiled schema. A reference to another document is refused: nothing is ever fetched."""

    def __init__(self, schema: dict[str, Any], owner: str):
        try:
            import jsonschema
            import jsonschema.validators
            from referencing import Registry
        except ImportError as error:
            raise ConfigError(f"tools need jsonschema, which is not installed: {_INSTALL}") from error
        if outside := _outside_reference(schema):
            raise ConfigError(f"{owner}: a tool's schema may refer to itself only, got $ref {outside!r}.")
        base: Any = jsonschema.Draft202012Validator
        try:
            base.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ConfigError(f"{owner}: its JSON schema is not one: {error.message[:300]}") from error
        # JSON Schema counts 3.0 as an integer; a Python function that asks for an int does not.
        strict = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
        validator = jsonschema.validators.extend(base, type_checker=strict)
        self._validator = validator(schema, registry=Registry(), format_checker=base.FORMAT_CHECKER)

    def complaints(self, value: Any) -> list[str]:
        """What is wrong with a value, one line each; empty where it is valid."""
        try:
            errors = sorted(self._validator.iter_errors(value), key=lambda error: [str(p) for p in error.absolute_path])
        except RecursionError:
            return ["it is nested too deeply"]
        except Exception as error:  # an unresolvable $ref, or a pattern that is no Python expression
            return [f"the schema cannot be applied: {type(error).__name__}"]
        lines = [_told(error) for error in errors[:_MOST_SHOWN]]
        return lines + ([f"and {len(errors) - _MOST_SHOWN} more"] if len(errors) > _MOST_SHOWN else [])


def _told(error: Any) -> str:
    where = ".".join(str(step) for step in error.absolute_path)
    at = f"{where}: " if where else ""
    wanted, found = error.validator_value, _short(error.instance)
    match error.validator:
        case "type":
            kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
            return f"{at}must be of type {kinds}, got {found}"
        case "required":
            return f"{at}{', '.join(name for name in wanted if name not in error.instance)}: must be given"
        case "enum":
            return f"{at}must be one of {', '.join(_short(one) for one in wanted)}, got {found}"
        case "additionalProperties" if wanted is False:
            known = error.schema.get("properties", {})
            extra = [name for name in error.instance if name not in known]
            return f"{at}there is no {', '.join(extra)}; known: {', '.join(known) or 'none'}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf":
            return f"{at}{error.validator} is {wanted}, got {found}"
        case "pattern":
            return f"{at}must match {wanted}, got {found}"
        case "format":
            return f"{at}must be a {wanted}, got {found}"
        case "minLength" | "maxLength" | "minItems" | "maxItems":
            return f"{at}{error.validator} is {wanted}, got {len(error.instance)}"
        case "anyOf" | "oneOf":
            kinds = [part.get("type") or part.get("enum") or part.get("$ref") or "another form" for part in wanted]
            return f"{at}must be {' or '.join(str(kind) for kind in kinds)}, got {found}"
    return f"{at}{error.message[:200]}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _outside_reference(part: Any) -> str | None:
    """The first $ref or $dynamicRef that leaves the document."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                return value
            if found := _outside_reference(value):
                return found
    if isinstance(part, list):
        return next((found for item in part if (found := _outside_reference(item))), None)
    return None
