"""The functions a caller declares, and which of them may be called: checked before anything is computed.

Declarations have OpenAI's shape: {"type": "function", "function": {"name", "description", "parameters", "strict"}}.
Arguments follow their schema whether `strict` is said or not.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemworks.errors import RequestError

Style = Literal["python", "json", "functiongemma"]
STYLES: tuple[Style, ...] = ("python", "json", "functiongemma")

# What OpenAI takes, and the dots that names of MCP servers have.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Function:
    """A declared function. parameters: a JSON schema of an object. where: its place in errors."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    where: str

    def told(self) -> dict[str, Any]:
        """Return the function as a model is told of it."""
        told: dict[str, Any] = {"name": self.name}
        if self.description:
            told["description"] = self.description
        return told | {"parameters": self.parameters}


@dataclass(frozen=True, slots=True)
class Toolset:
    """The functions of one request. choice: "auto", "none", "required" or "named", which is required of one alone."""

    functions: tuple[Function, ...]
    choice: Literal["auto", "none", "required", "named"]
    parallel: bool
    style: Style
    named: str | None = None

    @property
    def callable(self) -> tuple[Function, ...]:
        """The functions that may be called."""
        if self.choice == "none":
            return ()
        return tuple(one for one in self.functions if self.named in (None, one.name))

    @property
    def is_required(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice in ("required", "named")


def toolset_of(tools: Any, choice: Any, parallel: bool | None, style: Style) -> Toolset | None:
    """Return what a request may call, None where it declares no function. Raises RequestError that names the field.

    tools: a list of declarations, or what has `schemas()`, which returns one.
    """
    if tools is not None and not isinstance(tools, Sequence) and hasattr(tools, "schemas"):
        tools = tools.schemas()
    if tools is not None and (not isinstance(tools, Sequence) or isinstance(tools, (str, bytes))):
        raise RequestError(f"tools must be a list of functions, got {type(tools).__name__}.")
    if parallel is not None and not isinstance(parallel, bool):
        raise RequestError(f"parallel_tool_calls must be true or false, got {parallel!r:.60}.")
    kind, named = _choice(choice)
    if not tools:
        if kind in ("required", "named"):
            raise RequestError("tool_choice asks for a call, and tools declares no function.")
        return None
    functions = tuple(_function(tool, f"tools[{i}]") for i, tool in enumerate(tools))
    names = [one.name for one in functions]
    if twice := [one for one in functions if names.count(one.name) > 1]:
        raise RequestError(f'{twice[1].where}.function.name must be another one, "{twice[1].name}" is declared twice.')
    if named is not None and named not in names:
        raise RequestError(f'tool_choice names "{named:.100}", and tools declares {", ".join(names)}.')
    return Toolset(functions, kind, parallel is not False, style, named)


def _choice(choice: Any) -> tuple[Any, str | None]:
    if choice is None:
        return "auto", None
    if isinstance(choice, str) and choice in _CHOICES:
        return choice, None
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        inside = choice.get("function", choice)
        if isinstance(inside, Mapping) and isinstance(inside.get("name"), str):
            return "named", inside["name"]
    raise RequestError(
        'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}, '
        f"got {choice!r:.100}."
    )


def _function(tool: Any, where: str) -> Function:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if kind != "function" or not isinstance(tool.get("function"), Mapping):
        raise RequestError(f'{where} must be {{"type": "function", "function": {{...}}}}, got {tool!r:.80}.')
    said = tool["function"]
    name, description, parameters = said.get("name"), said.get("description"), said.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.function.name must be 1 to 64 letters, digits, underscores, dashes or dots, got {name!r:.80}."
        )
    if description is not None and not isinstance(description, str):
        raise RequestError(f"{where}.function.description must be a text, got {description!r:.80}.")
    return Function(name, (description or "").strip(), _parameters(parameters, f"{where}.function.parameters"), where)


def _parameters(schema: Any, where: str) -> dict[str, Any]:
    """A schema of an object; nothing said is an object without properties."""
    if schema is None or schema == {}:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise RequestError(f'{where} must be a JSON schema of "type": "object", got {schema!r:.80}.')
    try:
        json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} must be a JSON schema, got: {error}.") from None
    return {"type": "object", **schema}
