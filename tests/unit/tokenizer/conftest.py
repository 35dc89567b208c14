"""A vocabulary of 302 pieces with Gemma's names at other ids, made by hand."""

import struct

import pytest

from gemworks.tokenizer import Tokenizer

CONTROL, USER_DEFINED, BYTE, NORMAL = 3, 4, 6, 1
MADE = [
    "he",
    "ll",
    "in",
    "hell",
    "hello",
    "or",
    "ld",
    "\u2581w",
    "orld",
    "\u2581world",
    "the",
    "\u2581the",
    "ing",
    "aa",
]


@pytest.fixture(scope="session")
def small_lists():
    """(pieces, scores, types) as llama.cpp's converter writes them: control tokens anywhere, space runs as spaces."""
    rows = [("<unk>", -1000.0, CONTROL), ("<start_of_turn>", -1000.0, CONTROL), ("<bos>", -1000.0, CONTROL)]
    rows += [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
    rows += [(piece, -float(i), NORMAL) for i, piece in enumerate(MADE)]
    rows += [(piece, -1000.0, USER_DEFINED) for piece in ("\n", "\n\n", "\n\n\n", "\t", "  ", "   ", "<b>")]
    rows += [(piece, -float(100 + i), NORMAL) for i, piece in enumerate("helowrdingtusm\u2581\u00e9a")]
    rows += [(piece, -1000.0, CONTROL) for piece in ("<end_of_turn>", "<eos>", "<unused7>", "[multimodal]", "<pad>")]
    pieces, scores, types = zip(*rows, strict=True)
    return list(pieces), list(scores), list(types)


@pytest.fixture(scope="session")
def small(small_lists):
    return Tokenizer.from_vocabulary(*small_lists)


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: bytes | int | float) -> bytes:
    """One protobuf field: bytes with a length, a varint, or a 4-byte float."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 5) + struct.pack("<f", value)


@pytest.fixture(scope="session")
def spm_bytes():
    """A function that writes a tokenizer.model of the given lists and settings."""

    def write(pieces, scores, types, *, model_type=2, normalizer=((3, 0), (4, 0))):
        out = b""
        for piece, score, kind in zip(pieces, scores, types, strict=True):
            text = piece.replace(" ", "\u2581").encode()
            out += field(1, field(1, text) + field(2, score) + (b"" if kind == NORMAL else field(3, kind)))
        out += field(2, field(3, model_type) + field(35, 1))
        return out + field(3, b"".join(field(n, v) for n, v in normalizer))

    return write
