r"""Calls in what a model writes, found while it is written.

    [weather(city="Paris", days=2), clock()]                            calls as Python has them, in a list or alone
    {"name": "weather", "parameters": {"city": "Paris"}}                calls as JSON objects, in a list or alone
    ```tool_code\nweather(city="Paris")\n```                            either, in a fence

A call begins at the start of a line, with the name of a declared function. Everything else is text: other fences, names
nobody declared, what breaks off or is no call after all. White space and fences between calls are syntax, and no text.

`LLM` reads eagerly: a grammar sees to it that a call that has begun goes on as one, so its pieces are told as they
come. Otherwise (`read_calls`) a call is told when its last bracket has come, and until then may still be text.
"""

from collections.abc import Collection, Generator

from gemworks.text.toolcalls.answer_reader import AnswerReader
from gemworks.text.toolcalls.call import Call
from gemworks.text.toolcalls.values import Ended, NotACall, Reading, escape, read_entries, read_value

_TAGS = frozenset({"", "tool_code", "tool_call", "tool_calls", "python", "py", "json"})  # of fences that may hold calls
_LONGEST_TAG = max(map(len, _TAGS))
_ARGUMENTS = ('parameters"', 'arguments"')


class CallReader(AnswerReader):
    """Reads one answer: `push` its text as it comes, `finish` at its end; both return (text, pieces of calls).

    names: the declared functions. eager: tell calls before they are whole; then one that breaks off is `partial`.
    objects: whether a call may be a JSON object.
    """

    def __init__(self, names: Collection[str], *, eager: bool = False, objects: bool = True):
        super().__init__(names)
        self._beginnings = frozenset(name[:n] for name in self._names for n in range(len(name) + 1))
        self._is_eager, self._reads_objects = eager, objects
        self._is_fenced = False  # a fence was opened before the last call
        self._is_over = False  # a call broke off: all that follows is text

    def _run(self) -> Reading:
        source = self._source
        while True:
            source.text, source.at = source.text[source.at :], 0
            while not source.text:
                if source.is_closed:
                    return
                yield
            if self._is_over or not (yield from self._attempt()):
                source.at = 0
            yield from self._line()

    def _line(self) -> Reading:
        """What is left of a line is text."""
        source = self._source
        while True:
            end = source.text.find("\n", source.at) + 1
            piece = source.text[source.at : end or len(source.text)]
            if piece.strip():
                self._is_fenced = False
            self._collected.say(piece)
            source.text, source.at = source.text[source.at + len(piece) :], 0
            if end or source.is_closed:
                return
            yield

    def _attempt(self) -> Generator[None, None, bool]:
        """Whether calls were read from the start of a line."""
        collected, source, was_fenced = self._collected, self._source, self._is_fenced
        collected.hold(tells=self._is_eager)
        try:
            yield from self._block()
        except NotACall as error:
            if self._is_eager and (collected.is_open or collected.num_held):
                if collected.is_open:
                    source.at = len(source.text) if isinstance(error, Ended) else source.at
                    collected.cut(source.text[: source.at])
                self._is_over = True
                return True
            collected.take_back()
            self._is_fenced = was_fenced
            return False
        collected.keep()
        return True

    def _block(self) -> Reading:
        """Calls, and a fence before or after them."""
        source = self._source
        while (character := (yield from source.peek())) in " \t":
            source.at += 1
        if character == "`":
            if (yield from self._fence()):
                return
            character = yield from source.skip()
        if character == "{" and self._reads_objects:
            yield from self._object()
        elif character == "[":
            source.at += 1
            yield from self._list()
        else:
            yield from self._python()

    def _fence(self) -> Generator[None, None, bool]:
        """Read a fence; whether it closes one that was opened before calls."""
        source = self._source
        yield from self._exactly("```")
        if self._is_fenced:
            self._is_fenced = False
            self._collected.say_nothing()
            return True
        tag = ""
        while (character := (yield from source.next())) != "\n":
            tag += character
            if len(tag) > _LONGEST_TAG:
                raise NotACall("a fence around something else")
        if tag.strip() not in _TAGS:
            raise NotACall("a fence around something else")
        self._is_fenced = True
        return False

    def _list(self) -> Reading:
        source = self._source
        is_object = (yield from source.skip()) == "{" and self._reads_objects
        reads = self._object if is_object else self._python
        while True:
            yield from reads()
            if (yield from source.skip()) == ",":
                source.at += 1
            elif (yield from source.peek()) != "]":
                raise NotACall("wanted , or ]")
            if (yield from source.skip()) == "]":
                source.at += 1
                return

    def _python(self) -> Reading:
        """name(key=value, ...)"""
        collected, source = self._collected, self._source
        name = yield from self._name("(")
        source.at += 1
        collected.begin(name)
        collected.emit("{")
        taken: set[str] = set()
        is_first = True
        while (yield from source.skip()) != ")":
            if (yield from source.peek()) == "*":
                yield from self._exactly("**")
                yield from source.expect("{")
                yield from read_entries(source, 0, is_first=is_first)
            else:
                key = yield from source.word()
                if not key.isidentifier() or key in taken:
                    raise NotACall("an argument must have a name of its own")
                yield from source.expect("=")
                collected.emit(("" if is_first else ",") + escape(key) + ":")
                taken.add(key)
                yield from read_value(source)
            is_first = False
            if (yield from source.skip()) == ",":
                source.at += 1
            elif (yield from source.peek()) != ")":
                raise NotACall("wanted , or )")
        source.at += 1
        collected.emit("}")
        collected.end()

    def _object(self) -> Reading:
        """{"name": "...", "parameters": {...}}"""
        collected, source = self._collected, self._source
        yield from source.expect("{")
        yield from source.skip()
        yield from self._exactly('"name"')
        yield from source.expect(":")
        yield from source.expect('"')
        name = yield from self._name('"')
        source.at += 1
        collected.begin(name)
        collected.emit("{")
        if (yield from source.skip()) == ",":
            source.at += 1
            yield from source.expect('"')
            yield from self._exactly(_ARGUMENTS[(yield from source.peek()) == "a"])
            yield from source.expect(":")
            yield from source.expect("{")
            yield from read_entries(source, 0)
        yield from source.expect("}")
        collected.emit("}")
        collected.end()

    def _name(self, ends: str) -> Generator[None, None, str]:
        """A declared name; what ends it is left."""
        source, name = self._source, ""
        while (character := (yield from source.peek())) not in ends:
            name += character
            source.at += 1
            if name not in self._beginnings:
                raise NotACall("no declared function")
        if name not in self._names:
            raise NotACall("no declared function")
        return name

    def _exactly(self, text: str) -> Reading:
        for character in text:
            if (yield from self._source.next()) != character:
                raise NotACall(f"wanted {text}")


def read_calls(text: str, names: Collection[str]) -> tuple[str, list[Call]]:
    """Return a finished text without its calls, and the calls of the functions `names`."""
    reader = CallReader(names)
    said = reader.push(text)[0] + reader.finish()[0]
    return said, reader.calls
