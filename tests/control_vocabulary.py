"""A small vocabulary with FunctionGemma's control tokens: letters, bytes and a few words, no merges of interest."""

from functools import cache

from gemworks.text.toolcalls.control import NAMES
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.tokenizer.vocabulary import SPACE, PieceType, byte_piece

_WORDS = ("ca", "call", "ll", "ci", "city", "ty", "ity", "ge", "get", "we", "f(", "('", '("', '":', "],", "})", ", ")


@cache
def control_tokenizer() -> Tokenizer:
    """The tokenizer; its control tokens are made by name and type, as a GGUF has them."""
    pieces: list[str] = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *NAMES]
    types = [PieceType.CONTROL] * len(pieces)
    types[3] = PieceType.UNKNOWN
    pieces += [byte_piece(value) for value in range(256)]
    types += [PieceType.BYTE] * 256
    letters = [SPACE if c == " " else c for c in map(chr, range(32, 127))] + ["\n", "\t"]
    words = [word.replace(" ", SPACE) for word in _WORDS]
    pieces += [*letters, *words]
    types += [PieceType.NORMAL] * (len(letters) + len(words))
    scores = [0.0] * (len(pieces) - len(words)) + [-float(i + 1) for i in range(len(words))]
    return Tokenizer.from_vocabulary(pieces, scores, [int(t) for t in types])
