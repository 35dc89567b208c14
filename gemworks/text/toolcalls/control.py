r"""FunctionGemma's own way to call: control tokens, which stand in unused slots of Gemma's vocabulary (46 to 52).

    <start_of_turn>developer\n{system}<start_function_declaration>declaration:weather{description:<escape>...<escape>,
        parameters:{properties:{city:{...,type:<escape>STRING<escape>}},required:[...],type:<escape>OBJECT<escape>}}
        <end_function_declaration><end_of_turn>\n
    <start_of_turn>user\nIn Paris?<end_of_turn>\n
    <start_of_turn>model\n<start_function_call>call:weather{city:<escape>Paris<escape>,days:2}<end_function_call>
        <start_function_response>response:weather{degrees:21}<end_function_response>It is 21 degrees.<end_of_turn>\n

(written in one line each, without the spaces here). Texts stand between <escape>s, keys are bare and sorted. Results
stand in the model's turn, which goes on after them: https://ai.google.dev/gemma/docs/functiongemma.

A prompt is made of texts and marks; a mark becomes a token's id, a text never does. A mark is half of a surrogate pair,
which no decoded text can hold.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemworks.errors import RequestError
from gemworks.text.toolcalls.call import compact
from gemworks.text.toolcalls.declared import Function, Toolset
from gemworks.text.toolcalls.history import Message, calls_of, text_of, with_names
from gemworks.tokenizer.vocabulary import FUNCTION_NAMES

if TYPE_CHECKING:
    from gemworks.tokenizer.tokenizer import Tokenizer

NAMES = FUNCTION_NAMES
DECLARE, DECLARED, CALL, CALLED, RESPOND, RESPONDED, ESCAPE = MARKS = tuple(chr(0xD800 + i) for i in range(7))

# What the model was tuned to begin with where nobody says anything else.
_OPENING = "You are a model that can do function calling with the following functions"
_ROLES = {"user": "user", "assistant": "model", "model": "model"}


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Ids of FunctionGemma's tokens, in the order of NAMES."""

    ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "ControlTokens | None":
        """Return the tokens of a vocabulary, None where it does not have them all as control tokens."""
        ids = tuple(tokenizer.id_of(name) for name in NAMES)
        if any(one is None or one not in tokenizer.control_ids for one in ids):
            return None
        return cls(tuple(one for one in ids if one is not None))

    @property
    def marks(self) -> dict[int, str]:
        """The marks that ids are read as."""
        return dict(zip(self.ids, MARKS, strict=True))

    @property
    def stop_id(self) -> int:
        """The token that ends an answer with calls: <start_function_response>."""
        return self.ids[MARKS.index(RESPOND)]

    def to_ids(self, tokenizer: "Tokenizer", text: str) -> list[int]:
        """Return the ids of a text with marks; all between two of them is tokenized as one text."""
        ids: list[int] = []
        plain = ""
        by_mark = dict(zip(MARKS, self.ids, strict=True))
        for character in text:
            if character in by_mark:
                ids += [*(tokenizer.encode(plain) if plain else ()), by_mark[character]]
                plain = ""
            else:
                plain += character
        return ids + (tokenizer.encode(plain) if plain else [])


def unmarked(text: str) -> str:
    """Return a text with marks as people read it: tokens by their names."""
    for mark, name in zip(MARKS, NAMES, strict=True):
        text = text.replace(mark, name)
    return text


def render_control(
    tokenizer: "Tokenizer", tokens: ControlTokens, messages: Sequence[Message], toolset: Toolset | None
) -> list[int]:
    """Return the ids of a conversation as FunctionGemma reads it, ending where it is to go on.

    Raises RequestError that names the message.
    """
    start, end = tokenizer.chat_ids
    newline = tokenizer.encode("\n")
    ids, first = [tokenizer.bos_id], 0
    opening = _clean(text_of(messages[0], 0)) if messages and messages[0].get("role") == "system" else None
    declared = "" if toolset is None else "".join(map(declaration, toolset.callable))
    if opening is not None or declared:
        first = 0 if opening is None else 1
        text = f"developer\n{opening or (_OPENING if declared else '')}{declared}"
        ids += [start, *tokens.to_ids(tokenizer, text), end, *newline]
    open_turn = ""
    for role, text, is_last_of_turn in _turns(messages, first):
        # Calls, their results and what follows them are one turn of the model.
        open_turn = open_turn or f"{role}\n"
        open_turn += text
        if is_last_of_turn:
            ids += [start, *tokens.to_ids(tokenizer, open_turn), end, *newline]
            open_turn = ""
    return [*ids, start, *tokens.to_ids(tokenizer, open_turn or "model\n")]


def _turns(messages: Sequence[Message], first: int) -> Iterator[tuple[str, str, bool]]:
    """(role, text with marks, whether its turn ends there) of every message."""
    before = "start"
    for i, message, names in with_names(messages)[first:]:
        role = message.get("role")
        if role == "tool":
            [name] = names
            yield "model", _response(name, text_of(message, i)), False
            before = "tool"
            continue
        if role not in _ROLES:
            raise RequestError(
                f'messages[{i}]: the role must be "user", "assistant" or "tool" ("system" only first), got {role!r}.'
            )
        said = _clean(text_of(message, i))
        spoken = _ROLES[role]
        if spoken == "model" and names:
            said += "".join(written_call(name, arguments) for name, arguments in calls_of(message, i))
            yield "model", said, not _goes_on(messages, i)
        elif spoken == "user" and before == "tool":
            # Nothing was said after the results: the turn ends with them.
            yield "model", "", True
            yield "user", said, True
        else:
            if before == spoken:
                raise RequestError(f"messages[{i}]: roles must alternate user and assistant, got {role} twice.")
            yield spoken, said, True
        before = spoken


def _goes_on(messages: Sequence[Message], i: int) -> bool:
    return i + 1 < len(messages) and messages[i + 1].get("role") == "tool"


def declaration(function: Function) -> str:
    """Return a function's declaration with marks."""
    schema = function.parameters
    text = f"declaration:{function.name}{{description:{_text(function.description)},parameters:{{"
    if schema.get("properties"):
        text += f"properties:{{{_properties(schema['properties'])}}},"
    if schema.get("required"):
        text += f"required:[{','.join(map(_text, schema['required']))}],"
    return f"{DECLARE}{text}type:{_text('OBJECT')}}}}}{DECLARED}"


def _properties(properties: Mapping[str, Any]) -> str:
    return ",".join(f"{_clean(key)}:{{{_property(properties[key])}}}" for key in ordered(properties))


def _property(schema: Any) -> str:
    """What a model is told of one argument: as much of the schema as the format has words for."""
    if not isinstance(schema, Mapping):
        return f"type:{_text('STRING')}"
    told, kind = [], schema.get("type")
    for word in ("anyOf", "oneOf", "allOf"):
        if kind is None and isinstance(schema.get(word), list) and schema[word]:
            inside = next((one for one in schema[word] if one != {"type": "null"}), {})
            schema = {**inside, **{k: v for k, v in schema.items() if k == "description"}}
            kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    kind = next((one for one in kinds if one not in ("null", None)), "string")
    if schema.get("description"):
        told.append(f"description:{_text(str(schema['description']).strip())}")
    if isinstance(schema.get("enum"), list):
        told.append(f"enum:{written_value(schema['enum'])}")
    if kind == "object" and schema.get("properties"):
        told.append(f"properties:{{{_properties(schema['properties'])}}}")
        if schema.get("required"):
            told.append(f"required:[{','.join(map(_text, schema['required']))}]")
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        told.append(f"items:{{{_property(schema['items'])}}}")
    if "null" in kinds:
        told.append("nullable:true")
    return ",".join([*told, f"type:{_text(str(kind).upper())}"])


def written_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call with marks, as the model writes it."""
    return f"{CALL}call:{_clean(name)}{written_value(arguments)}{CALLED}"


def _response(name: str, content: str) -> str:
    """A result: the fields of a JSON object, or `value`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = content
    told = written_value(value if isinstance(value, dict) else {"value": value})
    return f"{RESPOND}response:{_clean(name)}{told}{RESPONDED}"


def written_value(value: Any) -> str:
    """Return a value with marks: texts between <escape>s, bare keys in order."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_clean(key)}:{written_value(value[key])}" for key in ordered(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(written_value, value)) + "]"
    return compact(value)


def ordered(keys: Mapping[str, Any]) -> list[str]:
    """Return keys as the model was taught to see them: sorted, capital letters like small ones."""
    return sorted(keys, key=str.lower)


def _text(text: Any) -> str:
    return f"{ESCAPE}{_clean(str(text))}{ESCAPE}"


def _clean(text: str) -> str:
    """A text in which no half of a surrogate pair can be taken for a mark."""
    return text.encode("utf-8", "replace").decode()
