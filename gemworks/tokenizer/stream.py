"""Token ids to text, one at a time, never half a character.

A character outside the vocabulary arrives as two to four byte tokens. They are held back until the character is
whole; bytes that cannot become one are U+FFFD, as in `bytes.decode(errors="replace")`. Whatever the ids, the pushed
texts and `finish()` add up to `Tokenizer.decode` of all of them.
"""

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemworks.tokenizer.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Decoder of one answer. Made by `Tokenizer.stream()`."""

    def __init__(self, tokenizer: "Tokenizer", *, skip_control: bool = True):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.control_ids if skip_control else frozenset()
        self._decoder = _Utf8Decoder(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, often one piece, sometimes nothing."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what is still held back, U+FFFD for half a character. The decoder is then as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
