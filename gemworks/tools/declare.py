"""From a Python function to what a model is told of it: name, description, JSON schemas of arguments and result.

Types come from the hints, descriptions from the docstring (Google, numpy or reST style, or plain sentences). pydantic
makes the schemas, and where a hint is a type that JSON does not have (a date, an enum, a dataclass) turns the values.

This module is also sent into the sandbox as source, to read a file's declarations and to turn values there: it imports
nothing of Gemworks. pydantic and docstring_parser are imported when needed.
"""

import inspect
import json
import types
import typing
from typing import Any

_PLAIN = (str, int, float, bool, type(None))
_SUMMARY_CHARS = 2000


class WrongDeclaration(ValueError):
    """A function that cannot be a tool, and why."""


class WrongValue(ValueError):
    """Arguments that the function's types refuse."""


def describe(function: Any, bound: tuple[str, ...] = ()) -> dict[str, Any]:
    """Name, description, schemas and whether values have to be turned. Parameters in `bound` are not the model's."""
    name = getattr(function, "__name__", "")
    if not inspect.isfunction(function) or name == "<lambda>":
        raise WrongDeclaration(f"a tool must be a function with a name, got {function!r}.")
    doc, told = _documented(function)
    hints = _hints(function)
    fields = _fields(function, bound)
    schema = _arguments_model(function, bound).model_json_schema(by_alias=True)
    for parameter, text in told.items():
        if parameter in schema["properties"] and "description" not in schema["properties"][parameter]:
            schema["properties"][parameter]["description"] = text
    returns = None
    if "return" in hints:
        returns = _without_titles(_adapter(hints["return"], name).json_schema(mode="serialization"))
    kept = {parameter: hints[parameter] for parameter in fields} | {"return": hints.get("return", type(None))}
    return {
        "name": name,
        "description": doc,
        "parameters": _without_titles(schema),
        "returns": returns,
        "convert": not all(_is_plain(hint) for hint in kept.values()),
    }


def describe_module(module: Any, bound: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Declarations of the functions that a module defines itself, in its order; those with a leading _ are its own.

    Each has `bound`, too: which of the bound names are parameters of that function.
    """
    found = [
        value
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    return [
        describe(function, bound)
        | {"bound": [name for name in bound if name in inspect.signature(function).parameters]}
        for function in found
    ]


def converted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """JSON values turned into what the hints say; WrongValue where a type refuses one."""
    import pydantic

    bound = tuple(set(inspect.signature(function).parameters) - set(arguments))
    try:
        # From JSON text: a date is a text there, and a tuple a list.
        model = _arguments_model(function, bound).model_validate_json(json.dumps(arguments))
    except pydantic.ValidationError as error:
        parts = [f"{'.'.join(str(step) for step in part['loc'])}: {part['msg']}" for part in error.errors()]
        raise WrongValue("; ".join(parts)) from None
    return {info.alias or name: getattr(model, name) for name, info in type(model).model_fields.items()}


def dumped(function: Any, result: Any) -> Any:
    """A result as JSON values, by the hint of what the function returns."""
    hint = _hints(function).get("return", Any)
    return _adapter(hint, function.__name__).dump_python(result, mode="json")


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise WrongDeclaration(f"{function.__name__}: a type hint names something unknown: {error}.") from error


def _fields(function: Any, bound: tuple[str, ...]) -> dict[str, inspect.Parameter]:
    """The parameters that the model fills in."""
    hints, found = _hints(function), {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise WrongDeclaration(
                f"{function.__name__}: every parameter must have a name that a call can use, got {parameter}."
            )
        if name in bound:
            continue
        if name not in hints:
            raise WrongDeclaration(
                f"{function.__name__}: every parameter needs a type hint, got {name} without one.\n"
                f"Write it as in: def {function.__name__}({name}: str)"
            )
        found[name] = parameter
    return found


def _arguments_model(function: Any, bound: tuple[str, ...]) -> Any:
    """A pydantic model whose fields have neutral names and the parameters' as aliases: `json` or `_x` are no
    trouble."""
    import pydantic

    hints, fields = _hints(function), {}
    for number, (name, parameter) in enumerate(_fields(function, bound).items()):
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"field_{number}"] = (hints[name], pydantic.Field(default, alias=name))
    try:
        model: Any = pydantic.create_model(
            function.__name__, __config__=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
        )
        model.model_json_schema()
    except pydantic.errors.PydanticUserError as error:
        text = str(error).splitlines()[0]
        raise WrongDeclaration(f"{function.__name__}: a parameter's type has no JSON form: {text}") from error
    return model


def _adapter(hint: Any, name: str) -> Any:
    import pydantic

    try:
        return pydantic.TypeAdapter(hint)
    except pydantic.errors.PydanticUserError as error:
        text = str(error).splitlines()[0]
        raise WrongDeclaration(f"{name}: the type of what it returns has no JSON form: {text}") from error


def _is_plain(hint: Any) -> bool:
    """Whether a JSON value is already what the hint says."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return False  # bounds and patterns are the schema's; converters are not, and both look alike
    if origin in (typing.Union, types.UnionType):
        return all(_is_plain(one) for one in arguments)
    if origin is typing.Literal:
        return all(isinstance(one, _PLAIN) for one in arguments)
    if origin is list:
        return all(_is_plain(one) for one in arguments)
    if origin is dict:
        return arguments[0] is str and _is_plain(arguments[1])
    return hint is Any or hint in (*_PLAIN, list, dict)


def _without_titles(schema: Any, names_follow: bool = False) -> Any:
    """A schema without the titles that pydantic makes up; properties that are called "title" stay."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {"properties", "$defs", "patternProperties", "dependentSchemas"}
    verbatim = {"default", "const", "enum", "examples"}
    return {
        key: part if not names_follow and key in verbatim else _without_titles(part, not names_follow and key in inner)
        for key, part in schema.items()
        if names_follow or key != "title" or not isinstance(part, str)
    }


def _documented(function: Any) -> tuple[str, dict[str, str]]:
    """(what the function is for, parameter -> description) from its docstring."""
    import docstring_parser

    text = inspect.getdoc(function) or ""
    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return text[:_SUMMARY_CHARS], {}
    parts = [part.strip() for part in (parsed.short_description, parsed.long_description) if part]
    told = {p.arg_name: " ".join(p.description.split()) for p in parsed.params if p.description}
    return "\n\n".join(parts)[:_SUMMARY_CHARS], told
