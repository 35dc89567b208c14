"""A made-up vocabulary of the official size, for models of random numbers where no official tokenizer is at hand.

Control tokens and bytes are where Gemma has them; the rest are all strings of one letter, of two, of three and of four
until the rows are used up. Text becomes other ids than the official ones, which random weights do not mind.
"""

import itertools
import string
from pathlib import Path

from gemworks.model.config import TEXT_VOCAB_SIZE
from gemworks.tokenizer.tokenizer import Tokenizer

_CONTROL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 105: "<start_of_turn>", 106: "<end_of_turn>"}
_UNKNOWN = (3, "<unk>")
_FIRST_BYTE = 238
_NORMAL, _UNKNOWN_TYPE, _CONTROL_TYPE, _UNUSED, _BYTE = 1, 2, 3, 5, 6
_SPACE = "\u2581"


def save_made_up(directory: Path, rows: int = TEXT_VOCAB_SIZE) -> None:
    """Write the tokenizer's files for `rows` ids, at least 600, into `directory`."""
    assert rows >= 600, f"{rows} rows leave no room for letters"
    pieces = [f"<unused{i}>" for i in range(_FIRST_BYTE + 256)]
    types = [_UNUSED] * len(pieces)
    for id, piece in _CONTROL.items():
        pieces[id], types[id] = piece, _CONTROL_TYPE
    pieces[_UNKNOWN[0]], types[_UNKNOWN[0]] = _UNKNOWN[1], _UNKNOWN_TYPE
    for byte in range(256):
        pieces[_FIRST_BYTE + byte], types[_FIRST_BYTE + byte] = f"<0x{byte:02X}>", _BYTE
    words = (
        "".join(letters)
        for length in itertools.count(1)
        for letters in itertools.product(_SPACE + string.ascii_lowercase, repeat=length)
    )
    pieces += itertools.islice(words, rows - len(pieces))
    types += [_NORMAL] * (rows - len(types))
    scores = [-float(i) if kind == _NORMAL else 0.0 for i, kind in enumerate(types)]
    Tokenizer.from_vocabulary(pieces, scores, types).save(directory)
