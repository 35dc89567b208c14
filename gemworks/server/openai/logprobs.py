"""`logprobs` of the completions API: four lists of equal length, token by token, the prompt's first where it is echoed.

tokens          a token's text; half a character as "bytes:\\xe2\\x80", as OpenAI writes it
token_logprobs  null for the first token of a prompt, which nothing stands before
top_logprobs    text -> log-probability of the likeliest tokens and the one that stands there
text_offset     characters before the token, control tokens and unfinished characters counted as none
"""

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemworks.server.openai.shapes import finite, token_data

if TYPE_CHECKING:
    from gemworks.engine.types import TokenLogprob
    from gemworks.tokenizer.tokenizer import Tokenizer


class TokenLogprobs:
    """The lists of one choice. `ids`: the prompt's tokens, where they are told."""

    def __init__(self, tokenizer: "Tokenizer", *, ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._ids = ids
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._clear()

    def echo(self, scores: "Sequence[TokenLogprob | None]") -> None:
        """Add the prompt's tokens."""
        for token_id, score in zip(self._ids, scores, strict=True):
            self._push(token_id, score)

    def add(self, scores: "Sequence[TokenLogprob]") -> None:
        """Add tokens of the answer."""
        for score in scores:
            self._push(score.token_id, score)

    def end(self) -> None:
        """Add the token that ended the answer, where the prompt is told too: without text, and null.

        It is drawn and not part of the answer. Evaluation harnesses ask for one token more than the prompt and cut off
        the last entry, whatever it is: without this they would cut off the prompt's own last token.
        """
        if self._ids:
            self._tokens.append("")
            self._offsets.append(self._offset)
            self._logprobs.append(None)
            self._top.append(None)

    def take(self) -> dict[str, Any]:
        """Return what was added since the last time."""
        told = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": self._offsets,
        }
        self._clear()
        return told

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def _push(self, token_id: int, score: "TokenLogprob | None") -> None:
        self._tokens.append(self._text(token_id))
        self._offsets.append(self._offset)
        if token_id not in self._tokenizer.control_ids:
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        if score is None:
            self._logprobs.append(None)
            self._top.append(None)
            return
        self._logprobs.append(finite(score.logprob))
        # Two tokens may have one text (a byte and its piece): the likelier one is told.
        top: dict[str, float] = {}
        for other, logprob in (*score.top, (score.token_id, score.logprob)):
            text = self._text(other)
            top[text] = max(finite(logprob), top.get(text, -9999.0))
        self._top.append(top if score.top else {})

    def _text(self, token_id: int) -> str:
        data = token_data(self._tokenizer, token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
