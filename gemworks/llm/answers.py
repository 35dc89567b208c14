"""From an engine's events to pieces of text and finished answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gemworks.engine.types import FinishReason, SamplingParams, Timings, TokenEvent, TokenLogprob
from gemworks.errors import RequestError
from gemworks.llm.calling import Reader
from gemworks.llm.structured import Form
from gemworks.text.stops import StopMatcher
from gemworks.text.toolcalls import Call, CallDelta, PartialCall
from gemworks.tokenizer.tokenizer import Tokenizer

# Why an answer ended: as the engine says, or by itself with calls of functions.
AnswerReason = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished answer. `text` ends before a stop string; `token_ids` are all tokens drawn, without the stop id.

    tool_calls: the functions it calls; what it says beside them is `text`. partial_call: the call it was cut in.
    image_tokens: of the prompt's tokens, those that stand for images. encode_s: seconds in the vision tower, which
    `timings.prefill_s` does without; 0 where every image was encoded before.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: AnswerReason = "stop"
    tool_calls: tuple[Call, ...] = ()
    partial_call: PartialCall | None = None
    stop_string: str | None = None  # which stop string ended it
    logprobs: list[TokenLogprob] | None = None
    encode_s: float = 0.0
    timings: Timings = field(default_factory=Timings)
    form: Form | None = field(default=None, repr=False)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as the next message of its conversation, with the calls that are whole."""
        told: dict[str, Any] = {"role": "assistant", "content": self.text or (None if self.tool_calls else "")}
        return told | ({"tool_calls": [call.told() for call in self.tool_calls]} if self.tool_calls else {})

    @property
    def parsed(self) -> Any:
        """The value of an answer whose form `schema` or `grammar` asked for. Raises RequestError if unfinished."""
        if self.form is None:
            raise RequestError("parsed is there where schema or grammar was asked for; this answer is text.")
        if self.finish_reason == "tool_calls":
            names = ", ".join(call.name for call in self.tool_calls)
            raise RequestError(f"the answer calls {names} and has no value; see tool_calls.")
        if self.finish_reason != "stop" or self.stop_string is not None:
            why = f"by {self.finish_reason}" if self.stop_string is None else f"at the stop text {self.stop_string!r}"
            raise RequestError(
                f"the answer is unfinished: it ended {why} after {self.completion_tokens:,} tokens.\n"
                "Raise max_tokens, or ask again."
            )
        return self.form.read(self.text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A piece of an answer, never half a character; the last one has `finish_reason` and the whole `completion`.

    `index` says which of n answers it belongs to. calls: pieces of calls of functions, which are no text.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallDelta, ...] = ()
    finish_reason: AnswerReason | None = None
    completion: Completion | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Natural-log probability of every token of a text given those before it; None for the first (<bos>)."""

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]

    @property
    def total(self) -> float:
        """Log-probability of the whole text."""
        return sum(score.logprob for score in self.logprobs if score is not None)


class Answer:
    """One answer as it grows: give it the events of its index, in order, and it gives the chunks.

    reader: what finds calls in it; marks: what it is told control tokens as.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tokens: int,
        params: SamplingParams,
        stops: Sequence[str],
        *,
        reader: Reader | None = None,
        marks: Mapping[int, str] | None = None,
    ):
        self._reader, self._marks = reader, marks if marks and reader else {}
        self._decoder, self._matcher = tokenizer.stream(), StopMatcher(tuple(stops))
        self._sofar = Completion(text="", prompt_tokens=prompt_tokens, logprobs=[] if params.logprobs else None)
        self._text = ""
        self.is_done = False

    def push(self, event: TokenEvent, timings: Timings) -> Chunk:
        """Return the piece of text that an event adds; a stop string may end the answer before its tokens do."""
        sofar, matcher = self._sofar, self._matcher
        told = (event.logprob,) if event.logprob else ()
        ids = () if event.token_id is None else (event.token_id,)
        sofar.token_ids.extend(ids)
        if sofar.logprobs is not None:
            sofar.logprobs.extend(told)
        piece = "" if event.token_id is None else self._decoder.push(event.token_id)
        piece += self._marks.get(event.token_id, "") if event.token_id is not None else ""
        if event.finish_reason:
            piece += self._decoder.finish()
        piece, matched = matcher.push(piece)
        reason: AnswerReason | None = "stop" if matched else event.finish_reason
        if reason and not matched:
            piece += matcher.flush()
        calls: tuple[CallDelta, ...] = ()
        if self._reader is not None:
            piece, calls = self._read(self._reader, piece, is_last=reason is not None)
            if reason == "stop" and not matched and self._reader.calls and self._reader.partial is None:
                reason = "tool_calls"
        self._text += piece
        completion = None
        if reason:
            self.is_done = True
            completion = dataclasses.replace(
                sofar,
                text=self._text,
                completion_tokens=len(sofar.token_ids),
                finish_reason=reason,
                tool_calls=tuple(self._reader.calls) if self._reader else (),
                partial_call=self._reader.partial if self._reader else None,
                stop_string=matcher.matched if matched else None,
                timings=timings,
            )
        return Chunk(
            text=piece,
            token_ids=ids,
            logprobs=told,
            calls=calls,
            finish_reason=reason,
            completion=completion,
            index=event.index,
        )

    @staticmethod
    def _read(reader: Reader, piece: str, *, is_last: bool) -> tuple[str, tuple[CallDelta, ...]]:
        text, calls = reader.push(piece) if piece else ("", [])
        if is_last:
            rest, more = reader.finish()
            text, calls = text + rest, [*calls, *more]
        return text, tuple(calls)
