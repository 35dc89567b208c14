"""Calls written with FunctionGemma's tokens, read while they are written; see control.py for the form."""

import json
from collections.abc import Generator

from gemworks.text.toolcalls.answer_reader import AnswerReader
from gemworks.text.toolcalls.control import CALL, CALLED, ESCAPE, MARKS, unmarked
from gemworks.text.toolcalls.values import DEEPEST, Ended, NotACall, Reading, Source, escape

_CONSTANTS = ("true", "false", "null")


class ControlReader(AnswerReader):
    """As CallReader, for texts with marks. A call that breaks off, or is none after all, is `partial`.

    Control tokens outside of calls are no text, as in every answer.
    """

    def _run(self) -> Reading:
        source, collected = self._source, self._collected
        while True:
            source.text, source.at = source.text[source.at :], 0
            begin = source.text.find(CALL)
            plain = source.text if begin < 0 else source.text[:begin]
            collected.say("".join(one for one in plain if one not in MARKS))
            source.at = len(plain)
            if begin < 0:
                if source.is_closed:
                    return
                yield
                continue
            source.text, source.at = source.text[begin:], 1
            try:
                yield from self._call()
            except NotACall as error:
                if collected.is_open:
                    source.at = len(source.text) if isinstance(error, Ended) else source.at
                    collected.cut(unmarked(source.text[: source.at]))
                else:
                    collected.say(unmarked(source.text[: source.at]))

    def _call(self) -> Reading:
        source, collected = self._source, self._collected
        told = ""
        while (character := (yield from source.next())) != "{":
            if character in MARKS:
                raise NotACall("no call")
            told += character
        name = told.removeprefix("call:")
        if name == told or name not in self._names:
            raise NotACall("no declared function")
        collected.begin(name)
        collected.emit("{")
        yield from _read_entries(source, 0)
        if (yield from source.peek()) != CALLED:
            raise NotACall("wanted the end of a call")
        source.at += 1
        collected.emit("}")
        collected.end()


def _read_value(source: Source, depth: int) -> Reading:
    character = yield from source.peek()
    if depth > DEEPEST:
        raise NotACall("nested too deep")
    if character == ESCAPE:
        source.at += 1
        source.emit('"')
        while (character := (yield from source.next())) != ESCAPE:
            start = source.at - 1
            end = source.text.find(ESCAPE, start)
            source.at = end if end >= 0 else len(source.text)
            source.emit(escape(source.text[start : source.at])[1:-1])
        source.emit('"')
    elif character == "[":
        yield from _read_list(source, depth)
    elif character == "{":
        source.at += 1
        source.emit("{")
        yield from _read_entries(source, depth)
        source.emit("}")
    else:
        source.emit((yield from _plain(source)))


def _plain(source: Source) -> Generator[None, None, str]:
    """A number or a constant."""
    told = ""
    while (character := (yield from source.peek())) not in ",]}" and character not in MARKS:
        told += character
        source.at += 1
    told = told.strip()
    try:
        is_value = told in _CONSTANTS or type(json.loads(told)) in (int, float)
    except ValueError:
        is_value = False
    if not is_value:
        raise NotACall(f"{told:.40} is no value")
    return told


def _read_list(source: Source, depth: int) -> Reading:
    source.at += 1
    source.emit("[")
    count = 0
    while (yield from source.peek()) != "]":
        if count:
            yield from source.expect(",")
            source.emit(",")
        yield from _read_value(source, depth + 1)
        count += 1
    source.at += 1
    source.emit("]")


def _read_entries(source: Source, depth: int) -> Reading:
    """key:value pairs up to and with the closing brace, which is not emitted."""
    is_first = True
    while (yield from source.peek()) != "}":
        if not is_first:
            yield from source.expect(",")
        key = ""
        while (character := (yield from source.next())) != ":":
            if character in MARKS or character in "{}[],":
                raise NotACall("a key must be a name")
            key += character
        key = key.strip()
        if not key:
            raise NotACall("a key must be a name")
        source.emit(("" if is_first else ",") + escape(key) + ":")
        is_first = False
        yield from _read_value(source, depth + 1)
    source.at += 1
