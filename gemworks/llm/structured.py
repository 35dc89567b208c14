"""What a call's answer must look like, and reading it when it is whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemworks.errors import BackendError, RequestError
from gemworks.text.grammar import Grammar, json_schema


@dataclass(frozen=True, slots=True)
class Form:
    """The grammar of an answer and, where a Python type was given, what reads it (a pydantic TypeAdapter)."""

    grammar: Grammar
    adapter: Any = None

    def read(self, text: str) -> Any:
        """Return a whole answer as a value: of the type that was given, of JSON, or the text itself."""
        if self.adapter is not None:
            return self.adapter.validate_json(text)
        return json.loads(text) if self.grammar.kind == "json" else text


def form_of(schema: Any = None, grammar: Grammar | None = None) -> Form | None:
    """Return the form that a call names, None where it names none. Raises RequestError.

    schema: a JSON schema as a mapping or its text, a pydantic model, or a type pydantic knows (list[int], a dataclass).
    grammar: one of gemworks.text.grammar.
    """
    if schema is None or grammar is not None:
        if schema is not None:
            raise RequestError("schema and grammar both say what the answer must look like; give one of them.")
        if grammar is not None and not isinstance(grammar, Grammar):
            raise RequestError(f"grammar must be a Grammar (gemworks.text.grammar), got {type(grammar).__name__}.")
        return None if grammar is None else Form(grammar)
    if isinstance(schema, (Mapping, str, bool)):
        return Form(json_schema(schema))
    adapter = _adapter(schema)
    return Form(
        json_schema(adapter.json_schema(), name=f"the schema of {getattr(schema, '__name__', schema)}"), adapter
    )


def _adapter(schema: Any) -> Any:
    try:
        import pydantic
    except ImportError:
        raise BackendError(
            "a Python type as schema needs the package pydantic, which is not installed.\n"
            "Install it with: pip install 'gemworks[serve]'"
        ) from None
    try:
        return pydantic.TypeAdapter(schema)
    except pydantic.errors.PydanticSchemaGenerationError as error:
        raise RequestError(f"schema must be a JSON schema or a type that pydantic knows: {error.message}") from None
