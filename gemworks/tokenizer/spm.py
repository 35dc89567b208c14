"""Reader of tokenizer.model, SentencePiece's protobuf file: pieces, scores and types, nothing else.

The sentencepiece library does not tell user-defined pieces from normal ones, and Gemma's newline runs, space runs and
HTML tags are exactly those. The wire format is a dozen lines, so we read it ourselves: 0.3 s for 262,144 pieces.

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 piece (text)        2 score (float)  3 type (1 where left out)
    TrainerSpec      3 model_type (1 unigram where left out, 2 BPE)
    NormalizerSpec   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces (1 where left out)

Every length is checked against the bytes that are left before it is used; nothing larger than the file is allocated.
"""

import struct
from collections.abc import Iterator

from gemworks.errors import CheckpointError

_BPE = 2
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
_FLOAT = struct.Struct("<f")


class _Damaged(Exception):
    """Bytes that are not protobuf; becomes a CheckpointError where the file's name is known."""


def read_spm(data: bytes, where: str) -> tuple[list[str | bytes], list[float], list[int]]:
    """Return (pieces, scores, types) of a BPE model that keeps text as it is; CheckpointError for any other file."""
    pieces: list[str | bytes] = []
    scores: list[float] = []
    types: list[int] = []
    trainer = normalizer = b""
    try:
        for field, value in _fields(data):
            if field == 1:
                piece, score, piece_type = _piece(_message(value))
                pieces.append(piece)
                scores.append(score)
                types.append(piece_type)
            elif field == 2:
                trainer = _message(value)
            elif field == 3:
                normalizer = _message(value)
        model_type = dict(_fields(trainer)).get(3, 1)
        rules = dict(_fields(normalizer))
    except _Damaged as damage:
        raise CheckpointError(
            f"{where}: a tokenizer.model must be SentencePiece's protobuf, got {damage}.\n"
            "The file is cut off or something else; fetch it again."
        ) from None
    if not pieces:
        raise CheckpointError(f"{where}: a tokenizer.model must hold pieces, got none in {len(data)} bytes.")
    if model_type != _BPE:
        kind = _MODEL_TYPES.get(model_type, model_type) if isinstance(model_type, int) else model_type
        raise CheckpointError(
            f"{where}: Gemma's SentencePiece model must be of type BPE, got {kind}.\n"
            "The file is likely the tokenizer of another model."
        )
    changes = {
        "a normalisation table": rules.get(2, b"") != b"",
        "add_dummy_prefix": rules.get(3, 1) != 0,
        "remove_extra_whitespaces": rules.get(4, 1) != 0,
    }
    if found := [name for name, is_set in changes.items() if is_set]:
        raise CheckpointError(
            f"{where}: Gemma's SentencePiece model must keep text as it is, got {', '.join(found)}.\n"
            "The file is likely the tokenizer of another model."
        )
    return pieces, scores, types


def _piece(data: bytes) -> tuple[bytes, float, int]:
    piece, score, piece_type = b"", 0.0, 1
    for field, value in _fields(data):
        if field == 1:
            piece = _message(value)
        elif field == 2:
            score = value if isinstance(value, float) else float("nan")
        elif field == 3:
            piece_type = value if isinstance(value, int) else 0
    return piece, score, piece_type


def _message(value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise _Damaged(f"the number {value} where a length-delimited field belongs")


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield (field number, value): int for varints, float for 4-byte fields, bytes for the others."""
    at, end = 0, len(data)
    while at < end:
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = _varint(data, at - 1)
        wire = key & 7
        if wire == 2:
            if at < end and data[at] < 0x80:
                size = data[at]
                at += 1
            else:
                size, at = _varint(data, at)
        elif wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Damaged(f"wire type {wire} at byte {at - 1}")
        if size > end - at:
            raise _Damaged(f"a field of {size} bytes with {end - at} left")
        raw = data[at : at + size]
        at += size
        yield key >> 3, _FLOAT.unpack(raw)[0] if wire == 5 else raw


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, offset after it). At most ten bytes, as protobuf has it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Damaged("the end of the file inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Damaged(f"a number of more than ten bytes at byte {at - 10}")
