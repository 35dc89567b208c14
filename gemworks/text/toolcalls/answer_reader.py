"""A reader of one answer that arrives in pieces: the ways in and out that every style's reader has."""

import abc
from collections.abc import Collection

from gemworks.text.toolcalls.call import Call, CallDelta, PartialCall
from gemworks.text.toolcalls.collected import Collected
from gemworks.text.toolcalls.values import Reading, Source


class AnswerReader(abc.ABC):
    """`push` the text as it comes, `finish` at its end; both return (text, pieces of calls). `_run` reads."""

    def __init__(self, names: Collection[str]):
        self._names = frozenset(names)
        self._collected = Collected()
        self._source = Source(self._collected.emit)
        self._reading = self._run()

    @property
    def calls(self) -> list[Call]:
        """The calls that are whole."""
        return self._collected.calls

    @property
    def partial(self) -> PartialCall | None:
        """The call that the answer broke off in."""
        return self._collected.partial

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """Return what more text tells."""
        self._source.text += text
        next(self._reading, None)
        return self._collected.take()

    def finish(self) -> tuple[str, list[CallDelta]]:
        """Return what the end of the text tells."""
        self._source.is_closed = True
        next(self._reading, None)
        self._collected.finish()
        return self._collected.take()

    @abc.abstractmethod
    def _run(self) -> Reading:
        """Read `_source` into `_collected`; yields where it needs more text."""
