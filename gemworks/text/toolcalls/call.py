"""Calls of functions as callers see them: whole, in pieces, and cut short."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any


def new_call_id() -> str:
    """Return an id that nobody can guess: call_ and 24 hex digits."""
    return "call_" + secrets.token_hex(12)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a model made. text: its arguments as compact JSON, an object."""

    name: str
    text: str
    id: str = field(default_factory=new_call_id, compare=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as a new dict."""
        return json.loads(self.text)

    def told(self) -> dict[str, Any]:
        """Return the call as OpenAI's messages have it."""
        return told_call(self.id, self.name, self.text)


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of call number `index` of an answer; the first piece of a call has its id and name.

    text: the next piece of its arguments' JSON. The last `}` comes when the call is whole, so what a cut call has told
    is never JSON.
    """

    index: int
    text: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class PartialCall:
    """A call that an answer ended in. text: its arguments so far, no whole JSON. source: what the model wrote."""

    name: str
    text: str
    source: str
    id: str = field(default_factory=new_call_id, compare=False)

    def told(self) -> dict[str, Any]:
        """Return what there is as OpenAI's messages have it, with arguments that end in the middle."""
        return told_call(self.id, self.name, self.text)


def told_call(id: str, name: str, text: str) -> dict[str, Any]:
    """Return a call as OpenAI's messages have it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


def compact(value: Any) -> str:
    """Return a value as compact JSON, as arguments are told."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
