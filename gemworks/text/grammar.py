"""Answers of a given form: JSON, a JSON schema, a regular expression, a choice, a context-free grammar.

    Grammar  --GrammarEngine.constrain-->  Constraint  --called before each draw-->  the ids that may come next, as bits

llguidance does the parsing: an Earley parser over a lexer of derivatives, run along a trie of the vocabulary, so that a
mask of 262,144 bits takes tens of microseconds and nothing is computed ahead of time
(https://github.com/guidance-ai/llguidance, docs/optimizations.md).

JSON is written without whitespace between its parts: a grammar that allows any lets a small model write newlines until
its tokens are used up. Control tokens, image tokens and rows that pad the vocabulary are never allowed; the tokens that
end an answer are, where the form is complete.

Not here: what a caller may ask (LLM, server), parsing of what comes out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gemworks.errors import BackendError, RequestError
from gemworks.text.closing import closed, exact, unkept
from gemworks.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

# No space after "," and ":"; whatever a schema's own "x-guidance" says.
_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":", "lenient": False}

# Grammars kept compiled: a server's callers send the same few.
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Grammar:
    """A form, as llguidance's text. Make one with the functions below; `name` is what errors call it."""

    text: str
    name: str
    kind: Literal["json", "text"] = "text"  # what an answer of it is


def json_object() -> Grammar:
    """Return the form of any JSON object."""
    return json_schema({"type": "object"}, name="a JSON object")


def json_schema(schema: Mapping[str, Any] | bool | str, *, name: str = "the schema") -> Grammar:
    """Return the form of what a JSON schema describes; `schema` may be its text. Raises RequestError.

    What is written is valid by the schema, with its properties in the schema's order. An object that names its
    properties gets no others, unless the schema says additionalProperties itself: a model that may invent some does not
    stop. A keyword that cannot be honoured is refused by name:
    https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md.
    """
    said = _read(schema, name) if isinstance(schema, str) else schema
    if isinstance(said, bool):
        said = {} if said else {"enum": []}
    if not isinstance(said, Mapping):
        raise RequestError(f"{name} must be a JSON object, got {type(said).__name__}.")
    try:
        return _json_grammar(json.dumps(said), name)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{name} must be a JSON schema, got: {error}.") from None


@lru_cache(maxsize=_KEPT)
def _json_grammar(schema: str, name: str) -> Grammar:
    said = json.loads(schema)
    if (why := unkept(said)) is not None:
        raise _refusal(Grammar("", name), why)
    told = json.dumps(exact(closed(said)))
    text = _library().LLMatcher.grammar_from_json_schema(told, overrides=_COMPACT)
    return _checked(Grammar(text, name, "json"))


def regex(pattern: str) -> Grammar:
    """Return the form of texts that match a regular expression as a whole. Raises RequestError.

    The syntax is that of Rust's regex crate: no look-around and no back-references.
    """
    return _checked(Grammar(_library().LLMatcher.grammar_from_regex(pattern), "the regular expression"))


def choice(texts: Sequence[str]) -> Grammar:
    """Return the form that is one of some texts. Raises RequestError."""
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise RequestError(f"a choice must be one or more texts that are not empty, got {texts!r:.200}.")
    return lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts), name="the choice")


def lark(source: str, *, name: str = "the grammar") -> Grammar:
    """Return the form of a context-free grammar, in Lark's notation with the rule `start`. Raises RequestError."""
    return _checked(Grammar(_library().LLMatcher.grammar_from_lark(source), name))


class GrammarEngine:
    """What turns grammars into masks for one vocabulary. May be used by many threads.

    tokenizer: whose tokens are drawn; vocab: rows of the logits; end_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab: int, end_ids: Sequence[int]):
        self._library = _library()
        self._words = (vocab + 31) // 32  # rows that pad the vocabulary stay forbidden
        vocabulary = self._library.TokenizerWrapper(_Vocabulary(tokenizer, min(vocab, tokenizer.size), end_ids))
        self._tokenizer = self._library.LLTokenizer(vocabulary, eos_token=list(end_ids))
        self._filled = (self._tokenizer.vocab_size + 31) // 32 * 4
        self._compiled: dict[str, llguidance.LLMatcher] = {}

    def constrain(self, grammar: Grammar) -> "Constraint":
        """Return a mask for one request. Raises RequestError where the grammar is too large."""
        made = self._compiled.get(grammar.text)
        if made is None:
            made = self._library.LLMatcher(self._tokenizer, grammar.text, log_level=0)
            _raise_error(made, grammar)
            while len(self._compiled) >= _KEPT:
                self._compiled.pop(next(iter(self._compiled)), None)
            self._compiled[grammar.text] = made
        return Constraint(made.deep_copy(), grammar, self._words, self._filled)


class Constraint:
    """The mask of one answer: called with its tokens so far, returns what may come next.

    It follows the tokens it is called with, back as well as forth. `fork` gives one for another answer.
    """

    def __init__(self, matcher: "llguidance.LLMatcher", grammar: Grammar, words: int, filled: int):
        self._matcher, self._words, self._filled = matcher, words, filled  # filled: bytes of the words that are told
        self.grammar = grammar
        self._taken: list[int] = []

    def fork(self) -> "Constraint":
        """Return a constraint of the same form at its beginning."""
        fresh = self._matcher.deep_copy()
        fresh.reset()
        return Constraint(fresh, self.grammar, self._words, self._filled)

    def __call__(self, answer: Sequence[int]) -> np.ndarray:
        """Return the allowed ids after these answer tokens as bits, uint32 words. Raises RequestError."""
        self._follow(answer)
        words = np.zeros(self._words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, self._filled)
        _raise_error(self._matcher, self.grammar)
        return words

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Whether these answer tokens are a whole text of the form."""
        self._follow(answer)
        return self._matcher.is_accepting()

    def _follow(self, answer: Sequence[int]) -> None:
        taken, matcher = self._taken, self._matcher
        shared = len(taken)
        if list(answer[:shared]) != taken:
            shared = next(i for i, token_id in enumerate(taken) if i >= len(answer) or answer[i] != token_id)
            matcher.rollback(len(taken) - shared)
            del taken[shared:]
        new = list(answer[shared:])
        if new and not matcher.consume_tokens(new):
            _raise_error(matcher, self.grammar)
        taken += new


class _Vocabulary:
    """A tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: Sequence[int]):
        self.eos_token_id, self.bos_token_id = end_ids[0], tokenizer.bos_id
        control = tokenizer.control_ids
        self.special_token_ids = sorted({*(i for i in control if i < size), *end_ids})
        self.tokens = [b"<control>" if i in control else tokenizer.token_bytes(i) for i in range(size)]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise BackendError(
            "answers of a given form need the package llguidance, which is not installed.\n"
            "Install it with: pip install 'gemworks[serve]'"
        ) from None
    return llguidance


def _read(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{name} must be JSON, got: {error}.") from None


def _checked(grammar: Grammar) -> Grammar:
    """Return a grammar that compiles. Raises RequestError."""
    is_error, told = _library().LLMatcher.validate_grammar_with_warnings(grammar.text)
    if is_error:
        raise _refusal(grammar, told[0])
    return grammar


def _raise_error(matcher: "llguidance.LLMatcher", grammar: Grammar) -> None:
    if matcher.is_error():
        raise _refusal(grammar, matcher.get_error())


def _refusal(grammar: Grammar, said: str) -> RequestError:
    said = said.strip().rstrip(".")
    return RequestError(f"{grammar.name} cannot be followed: {said[:500]}.\nChange it, or leave it out.")
