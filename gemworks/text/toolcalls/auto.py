"""Text that is free until a call begins, and a call from there on: the mask of `auto`.

    "Let me see.\\n"  "["  "weather"  "("        "city="  ...  ")]"
    all tokens         all but those that would   what the grammar of calls allows
                       end in the middle of a
                       call that cannot be

A token may complete the head of a call and go on after it, as `("` does after `weather`. Such a token is allowed where
the grammar allows it, and so a call that has begun can always be finished. Everywhere else text needs no mask: with the
official vocabulary a grammar of "any text, then calls" took 3 ms a token and 20 at the start of a line, and could not
be followed with 200 functions.
"""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from gemworks.errors import RequestError
from gemworks.text.grammar import Constraint, Grammar, GrammarEngine
from gemworks.text.toolcalls.control import CALL, MARKS, ControlTokens
from gemworks.tokenizer.tokenizer import Tokenizer

_SPACES = b" \t\r\n"
_KEPT = 16  # sets of tools whose masks are remembered


class Found(NamedTuple):
    """What a text from the start of a line is: the beginning of a head, a head and what follows it, or neither.

    canonical: the head, or its beginning, as the grammar of calls writes it.
    """

    kind: Literal["dead", "begun", "done"]
    canonical: bytes = b""
    rest: bytes = b""


_DEAD = Found("dead")


class Heads:
    """The heads of calls: `[name(`, `name(`, `{"name": "name"` and `[{"name": "name"`."""

    def __init__(self, names: Collection[str]):
        self._calls = [f"{name}(".encode() for name in names]
        self._quoted = [f'"{name}"'.encode() for name in names]

    def find(self, text: bytes) -> Found:
        """Return what a text from the start of a line is. CallReader finds the same."""
        left, told = text.lstrip(b" \t"), b""
        if left[:1] == b"[":
            left, told = left[1:].lstrip(_SPACES), b"["
        if left[:1] == b"{":
            left, told = left[1:].lstrip(_SPACES), told + b"{"
            for element, written in ((b'"name"', b'"name"'), (b":", b": ")):
                if not left.startswith(element):
                    return Found("begun", told + left) if element.startswith(left) else _DEAD
                left, told = left[len(element) :].lstrip(_SPACES), told + written
            return _one_of(self._quoted, told, left)
        return _one_of(self._calls, told, left)


def _one_of(wanted: Sequence[bytes], told: bytes, left: bytes) -> Found:
    for one in wanted:
        if left.startswith(one):
            return Found("done", told + one, left[len(one) :])
    return Found("begun", told + left) if any(one.startswith(left) for one in wanted) else _DEAD


class Endings:
    """The tokens of a vocabulary that may complete a head: those with a bracket or a quote, by their first byte."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.tokenizer, self.size = tokenizer, size
        self.by_byte: dict[int, list[tuple[int, bytes]]] = {}
        self.of_lines: list[tuple[int, bytes]] = []  # a line ends in them and another begins
        for token_id in range(min(size, tokenizer.size)):
            if token_id in tokenizer.control_ids:
                continue
            data = tokenizer.token_bytes(token_id)
            if b"(" in data or b'"' in data:
                self.by_byte.setdefault(data.lstrip(_SPACES)[0], []).append((token_id, data))
                if b"\n" in data:
                    self.of_lines.append((token_id, data))


class CallMasks:
    """Makes the masks of `auto` for one vocabulary. engine: of the same; vocab: ids below it may be drawn."""

    def __init__(self, engine: GrammarEngine, tokenizer: Tokenizer, *, vocab: int):
        self._engine, self._endings = engine, Endings(tokenizer, vocab)
        self._known: dict[str, dict[bytes, np.ndarray | None]] = {}  # by grammar

    def mask(
        self, grammar: Grammar, names: Collection[str], tokens: ControlTokens | None = None
    ) -> "FreeUntilCall | FreeUntilToken":
        """Return the mask of one answer. grammar: of calls of the functions `names`; tokens: where they begin calls."""
        constraint = self._engine.constrain(grammar)
        if tokens is not None:
            return FreeUntilToken(constraint, tokens)
        while len(self._known) >= _KEPT and grammar.text not in self._known:
            self._known.pop(next(iter(self._known)), None)
        known = self._known.setdefault(grammar.text, {})
        return FreeUntilCall(constraint, Heads(names), self._endings, known)


class FreeUntilCall:
    """The mask of one answer, as Constraint is one. constraint: of the calls alone, at its beginning.

    known: tokens that must not be drawn, by the beginning of a head; shared by the masks of one set of tools.
    """

    def __init__(self, constraint: Constraint, heads: Heads, endings: Endings, known: dict[bytes, np.ndarray | None]):
        self._constraint, self._heads, self._endings, self._known = constraint, heads, endings, known
        self._reset()

    def fork(self) -> "FreeUntilCall":
        """Return a mask of the same form at its beginning."""
        return FreeUntilCall(self._constraint.fork(), self._heads, self._endings, self._known)

    def __call__(self, answer: Sequence[int]) -> np.ndarray | None:
        """Return the allowed ids after these answer tokens as bits; None allows all. Raises RequestError."""
        self._follow(answer)
        if self._head is not None:
            return self._constraint([*self._head, *answer[self._begun :]])
        line = None if self._is_dead else self._heads.find(self._line).canonical
        return self._allowed(line)

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Whether these answer tokens are text, or end with whole calls."""
        self._follow(answer)
        return self._head is None or self._constraint.is_complete([*self._head, *answer[self._begun :]])

    def _reset(self) -> None:
        self._taken: list[int] = []
        self._line = b""  # from the start of a line on that may become a head
        self._is_dead = False  # the line is text
        self._head: list[int] | None = None  # the head, and what followed it in its last token, as tokens
        self._begun = 0  # answer tokens up to it

    def _follow(self, answer: Sequence[int]) -> None:
        if list(answer[: len(self._taken)]) != self._taken:
            self._reset()
        for token_id in answer[len(self._taken) :]:
            self._taken.append(token_id)
            if self._head is None:
                self._add(token_id)

    def _add(self, token_id: int) -> None:
        tokenizer = self._endings.tokenizer
        self._line += b"" if token_id in tokenizer.control_ids else tokenizer.token_bytes(token_id)
        while True:
            if self._is_dead:
                end = self._line.find(b"\n")
                self._is_dead, self._line = end < 0, self._line[end + 1 :] if end >= 0 else b""
                if self._is_dead:
                    return
            found = self._heads.find(self._line)
            if found.kind == "begun":
                return
            if found.kind == "done":
                head = tokenizer.encode((found.canonical + found.rest).decode("utf-8", "replace"))
                try:
                    self._constraint(head)
                except RequestError:  # only where a token was drawn that this mask forbids
                    self._constraint = self._constraint.fork()
                else:
                    self._head, self._begun = head, len(self._taken)
                    return
            self._is_dead = True

    def _allowed(self, line: bytes | None) -> np.ndarray | None:
        """The mask where a line has begun like this; None: in the middle of text."""
        key = b"\n" if line is None else line
        if key not in self._known:
            self._known[key] = self._made(line)
        return self._known[key]

    def _made(self, line: bytes | None) -> np.ndarray | None:
        ends, find = self._endings, self._heads.find
        bad = [i for i, data in ends.of_lines if _completes(find, data[data.find(b"\n") + 1 :])]
        if line is not None:
            first = [byte for byte in ends.by_byte if find(line + bytes([byte])).kind != "dead"]
            risky = [one for byte in first for one in ends.by_byte[byte]]
            ids = [i for i, data in risky if (found := find(line + data)).kind == "done" and found.rest]
            if ids:
                words = self._constraint.fork()(ends.tokenizer.encode(line.decode("utf-8", "replace")))
                bad += [i for i in ids if not words[i // 32] >> (i % 32) & 1]
        if not bad:
            return None
        allowed = np.full((ends.size + 31) // 32, 0xFFFFFFFF, np.uint32)
        for i in bad:
            allowed[i // 32] &= ~np.uint32(1 << (i % 32))
        return allowed


def _completes(find, text: bytes) -> bool:
    """Whether a head is complete in one of the lines of a text."""
    return any(find(line).kind == "done" for line in text.split(b"\n"))


class FreeUntilToken:
    """As FreeUntilCall, with FunctionGemma's token that begins a call."""

    def __init__(self, constraint: Constraint, tokens: ControlTokens):
        self._constraint, self._tokens = constraint, tokens
        self._begins = tokens.ids[MARKS.index(CALL)]

    def fork(self) -> "FreeUntilToken":
        """Return a mask of the same form at its beginning."""
        return FreeUntilToken(self._constraint.fork(), self._tokens)

    def __call__(self, answer: Sequence[int]) -> np.ndarray | None:
        """Return the allowed ids after these answer tokens as bits; None allows all. Raises RequestError."""
        calls = self._calls(answer)
        return None if calls is None else self._constraint(calls)

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Whether these answer tokens are text, or end with whole calls."""
        calls = self._calls(answer)
        return calls is None or self._constraint.is_complete(calls)

    def _calls(self, answer: Sequence[int]) -> list[int] | None:
        told = list(answer)
        return told[told.index(self._begins) :] if self._begins in told else None
