"""Values in calls, read a character at a time and passed on as compact JSON: Python's literals and JSON's, mixed.

    'it\\'s'  "a\\u0041"  \"\"\"...\"\"\"  r'\\d'    strings           1  -2.5  1_000  0x1f  .5     numbers
    True true None null                     constants         [1, (2,), {"a": 1}]         lists, tuples, dicts

Readers are generators: they yield where the text that has come is used up, and go on when there is more. So a text in
pieces is read once, in linear time, and wherever it was cut makes no difference. Nesting is limited, so that no text
can exhaust the interpreter's stack.

Not here: expressions, sets, calls inside of arguments, f-strings, texts side by side. They are no values, and what
holds them is no call.
"""

import json
from collections.abc import Callable, Generator

Reading = Generator[None, None, None]  # yields where it needs more text

DEEPEST = 150
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}
_SIMPLE |= {one: one for one in "\\\"'/"}
_CODED = {"x": 2, "u": 4, "U": 8}  # escapes with so many hex digits
_OCTAL = "01234567"
_QUOTES = "\"'"
_SPACES = " \t\r\n"
_LONGEST_NUMBER = 4000  # digits; Python reads whole numbers of 4,300

escape = json.encoder.encode_basestring  # a text as a JSON string, by the C code of json


class NotACall(Exception):
    """The text is no call after all."""


class Ended(NotACall):
    """The text ended in the middle."""


class Source:
    """Text that arrives in pieces. `at` is what was read of it; `emit` takes JSON as it is known."""

    def __init__(self, emit: Callable[[str], None]):
        self.text = ""
        self.at = 0
        self.is_closed = False
        self.emit = emit

    def more(self) -> Reading:
        """Wait for a character. Raises NotACall where no more will come."""
        while self.at >= len(self.text):
            if self.is_closed:
                raise Ended
            yield

    def peek(self) -> Generator[None, None, str]:
        """Return the next character and leave it."""
        if self.at >= len(self.text):
            yield from self.more()
        return self.text[self.at]

    def next(self) -> Generator[None, None, str]:
        """Return the next character."""
        if self.at >= len(self.text):
            yield from self.more()
        self.at += 1
        return self.text[self.at - 1]

    def skip(self) -> Generator[None, None, str]:
        """Pass white space and return the character after it, which is left."""
        while (character := (yield from self.peek())) in _SPACES:
            self.at += 1
        return character

    def expect(self, character: str) -> Reading:
        """Pass white space and then this character."""
        if (yield from self.skip()) != character:
            raise NotACall(f"wanted {character}")
        self.at += 1

    def word(self) -> Generator[None, None, str]:
        """Return a name: letters, digits and _."""
        told = ""
        while (character := (yield from self.peek())).isalnum() or character == "_":
            told += character
            self.at += 1
        return told


def read_value(source: Source, depth: int = 0) -> Reading:
    """Read one value and emit it as JSON."""
    character = yield from source.skip()
    if depth > DEEPEST:
        raise NotACall("nested too deep")
    if character in _QUOTES:
        yield from read_string(source)
    elif character in "[(":
        yield from _read_list(source, "]" if character == "[" else ")", depth)
    elif character == "{":
        source.emit("{")
        source.at += 1
        yield from read_entries(source, depth)
        source.emit("}")
    elif character.isascii() and (character.isdigit() or character in "+-."):
        yield from _read_number(source)
    else:
        yield from _read_word(source)


def read_entries(source: Source, depth: int, *, is_first: bool = True) -> Reading:
    """Read "key": value pairs up to and with the closing brace, which is not emitted.

    is_first: nothing stands before them in their object. A key may come twice, as in JSON and Python.
    """
    while (yield from source.skip()) != "}":
        source.emit("" if is_first else ",")
        is_first = False
        if (yield from source.peek()) not in _QUOTES:
            raise NotACall("a key must be a text")
        yield from read_string(source)
        yield from source.expect(":")
        source.emit(":")
        yield from read_value(source, depth + 1)
        if (yield from source.skip()) == ",":
            source.at += 1
        elif (yield from source.peek()) != "}":
            raise NotACall("wanted , or }")
    source.at += 1


def _read_list(source: Source, end: str, depth: int) -> Reading:
    source.at += 1
    source.emit("[")
    count = commas = 0
    while (yield from source.skip()) != end:
        if count:
            source.emit(",")
        yield from read_value(source, depth + 1)
        count += 1
        if (yield from source.skip()) == ",":
            source.at += 1
            commas += 1
        elif (yield from source.peek()) != end:
            raise NotACall(f"wanted , or {end}")
    if end == ")" and count == 1 and not commas:
        raise NotACall("a value in parentheses is an expression")
    source.at += 1
    source.emit("]")


def read_string(source: Source, *, is_raw: bool = False) -> Reading:
    """Read a text in single, double or three quotes and emit it as a JSON string, in pieces as they come."""
    quote = yield from source.next()
    is_long = False
    if (yield from source.peek()) == quote:
        source.at += 1
        if source.at >= len(source.text) and source.is_closed:
            source.emit('""')
            return
        if (yield from source.peek()) != quote:
            source.emit('""')
            return
        source.at += 1
        is_long = True
    source.emit('"')
    high = ""  # the first half of a character that JSON writes as two escapes
    while True:
        start = source.at
        text, size = source.text, len(source.text)
        while source.at < size and (plain := text[source.at]) != quote and plain != "\\" and (is_long or plain != "\n"):
            source.at += 1
        if source.at > start:
            source.emit(("\ufffd" if high else "") + _inner(text[start : source.at]))
            high = ""
        character = yield from source.next()
        if character == quote:
            if is_long and not (yield from _ends_long(source, quote)):
                source.emit(_inner(quote))
                continue
            source.emit(("\ufffd" if high else "") + '"')
            return
        if character == "\n" and not is_long:
            raise NotACall("a text ends with its line")
        if character == "\\":
            told = yield from _read_escape(source, is_raw)
            high = _emit_escaped(source, high, told)
        else:  # came after the look at what was there
            source.at -= 1


def _ends_long(source: Source, quote: str) -> Generator[None, None, bool]:
    """Whether two more quotes follow the one that was read; reads them where they do."""
    for ahead in range(2):
        while source.at + ahead >= len(source.text):
            if source.is_closed:
                raise Ended
            yield
        if source.text[source.at + ahead] != quote:
            return False
    source.at += 2
    return True


def _emit_escaped(source: Source, high: str, told: str) -> str:
    """Emit what an escape stands for; return a half that waits for its other half. A lone half becomes U+FFFD."""
    if high and told and "\udc00" <= told <= "\udfff":
        source.emit(_inner((high + told).encode("utf-16", "surrogatepass").decode("utf-16")))
        return ""
    if high:
        source.emit("\ufffd")
    if told and "\ud800" <= told <= "\udbff":
        return told
    source.emit(_inner("\ufffd" if told and "\udc00" <= told <= "\udfff" else told))
    return ""


def _read_escape(source: Source, is_raw: bool) -> Generator[None, None, str]:
    """Return what stands after a backslash, which was read."""
    character = yield from source.next()
    if is_raw:
        return "\\" + character
    if character in _CODED:
        digits = ""
        for _ in range(_CODED[character]):
            digits += yield from source.next()
        try:
            return chr(int(digits, 16)) if digits.isascii() and digits.isalnum() else _no_escape(digits)
        except (ValueError, OverflowError):
            _no_escape(digits)
    if character in _OCTAL:
        while len(character) < 3 and (yield from source.peek()) in _OCTAL:
            character += yield from source.next()
        return chr(int(character, 8))
    if character == "\n":
        return ""  # a line that goes on
    # Python keeps the backslash of what is no escape.
    return _SIMPLE.get(character, "\\" + character)


def _no_escape(digits: str) -> str:
    raise NotACall(f"{digits} is no character")


def _inner(text: str) -> str:
    return escape(text)[1:-1]


def _read_number(source: Source) -> Reading:
    told = ""
    while (character := (yield from source.peek())).isascii() and (character.isalnum() or character in "+-._"):
        if character in "+-" and told and (told[-1] not in "eE" or told[:2].lower() == "0x"):
            break
        told += character
        source.at += 1
        if len(told) > _LONGEST_NUMBER:
            raise NotACall("a number is too long")
    source.emit(_number(told))


def _number(text: str) -> str:
    """A number as JSON; as it was written where it is JSON."""
    try:
        if type(json.loads(text)) in (int, float) and text.lstrip("-")[:1].isdigit():
            return text
    except ValueError:
        pass
    try:
        return str(int(text, 0))
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        raise NotACall(f"{text} is no number") from None
    if text.isdigit():
        raise NotACall(f"{text} has zeros in front")
    if value != value or value in (float("inf"), float("-inf")):
        raise NotACall("JSON has no such number")
    return json.dumps(value)


def _read_word(source: Source) -> Reading:
    word = yield from source.word()
    if word in _CONSTANTS:
        source.emit(_CONSTANTS[word])
    elif word in ("r", "R", "u", "U") and (yield from source.peek()) in _QUOTES:
        yield from read_string(source, is_raw=word in "rR")
    else:
        raise NotACall(f"{word or 'this'} is no value")
