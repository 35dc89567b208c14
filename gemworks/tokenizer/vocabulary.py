"""A SentencePiece vocabulary as three equal-length lists: pieces, scores, types. What tokenizer.model and GGUF hold.

A tokenizer.json holds merges instead. Both say the same thing: a piece's score is the rank at which it is made, and
every way to cut a piece into two others is a merge of that rank. `merges_of` and `scores_of` translate; on the
official vocabulary `merges_of` gives the 514,906 published merges in the published order (tests/golden/tokenizer).

Writers differ in what they keep of the types:

    written by             space runs          their score   <start_of_turn>   newline runs, HTML tags
    SentencePiece          U+2581 x n          0             user-defined      user-defined
    llama.cpp's converter  plain spaces        -1000         control           user-defined
    Ollama's converter     U+2581 x n          0             normal            normal

`Vocabulary.checked` brings all of them to one form, so the ids that come out are the same.

Not here: Unigram models (their scores are log-probabilities, not ranks); the reader refuses them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

from gemworks.errors import CheckpointError

SPACE = "\u2581"  # stands for U+0020 inside pieces

# Special in the published tokenizer.json; transformers drops these with skip_special_tokens.
SPECIAL_NAMES = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
# FunctionGemma's, in slots 46 to 52, which other models leave unused.
FUNCTION_NAMES = (
    "<start_function_declaration>",
    "<end_function_declaration>",
    "<start_function_call>",
    "<end_function_call>",
    "<start_function_response>",
    "<end_function_response>",
    "<escape>",
)
# Published as not special, and yet not text that a user can mean.
CONTROL_NAMES = frozenset(SPECIAL_NAMES) | {"<mask>", "[multimodal]"} | frozenset(FUNCTION_NAMES)
_UNUSED_NAME = re.compile(r"<unused\d+>")
_LONGEST_RUN = 31  # of newlines, tabs or spaces in the published vocabulary
_SHOWN = 10


class PieceType(IntEnum):
    """Type numbers of SentencePiece, used unchanged by GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_MADE_BY_MERGES = (PieceType.NORMAL, PieceType.USER_DEFINED)


def is_control_name(piece: str) -> bool:
    """Whether Gemma reserves this piece, whatever type the file gives it."""
    return piece in CONTROL_NAMES or _UNUSED_NAME.fullmatch(piece) is not None


def byte_piece(value: int) -> str:
    """Name of the piece that stands for one byte: `<0x0A>` for 10."""
    return f"<0x{value:02X}>"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces by id with scores and types; spaces are U+2581, types are the ones Gemma means. Made by `checked`."""

    pieces: list[str]
    scores: list[float]
    types: list[PieceType]

    @classmethod
    def checked(
        cls, pieces: Sequence[str | bytes], scores: Sequence[float], types: Sequence[int], where: str
    ) -> "Vocabulary":
        """Bring a file's lists to one form. `where` names the file in the CheckpointError that any defect raises.

        Padding at the end (unused pieces, which llama.cpp adds up to the embedding's rows) is dropped, and
        `<image_soft_token>`, which only tokenizer.json has, is appended to a vocabulary with images.
        """
        if not len(pieces) == len(scores) == len(types):
            raise CheckpointError(
                f"{where}: pieces, scores and types must be equally long, "
                f"got {len(pieces)}, {len(scores)} and {len(types)}."
            )
        kinds = _piece_types(types, where)
        size = len(kinds)
        while size and kinds[size - 1] is PieceType.UNUSED:
            size -= 1
        names = [_piece_text(piece, i, where) for i, piece in enumerate(pieces[:size])]
        ranks = [float(score) for score in scores[:size]]
        del kinds[size:]
        for i, name in enumerate(names):
            if kinds[i] is PieceType.USER_DEFINED and " " in name:
                names[i] = name = name.replace(" ", SPACE)
            # Every reserved name ends in > or ]: one look at the last character spares 250,000 pattern matches.
            if name[-1:] in (">", "]") and kinds[i] is not PieceType.UNKNOWN and is_control_name(name):
                kinds[i] = PieceType.CONTROL
        if "<start_of_image>" in names and "<image_soft_token>" not in names:
            names.append("<image_soft_token>")
            ranks.append(0.0)
            kinds.append(PieceType.CONTROL)
        _refuse_duplicates(names, where)
        _refuse_missing(names, where)
        if any(rank != rank for rank in ranks):
            raise CheckpointError(f"{where}: every score must be a number, got NaN for {names[_first_nan(ranks)]!r}.")
        return cls(names, ranks, kinds)


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges that the scores stand for, first to apply first.

    Order: score downwards; among pieces of one score (the whitespace runs) the longest left part first. A
    user-defined piece goes with the best normal one, whatever its score: SentencePiece takes it before any merge.
    If no piece is user-defined and some cannot be made by merging, the file's writer lost those types: they are
    put back (`vocabulary.types` is changed), with those of the whitespace runs.
    """
    types = vocabulary.types
    merges, unmade = _split_all(vocabulary)
    if unmade and PieceType.USER_DEFINED not in types:
        runs = {c * n for c in ("\n", "\t", SPACE) for n in range(1, _LONGEST_RUN + 1)} - {SPACE}
        lost = runs | unmade
        for i, piece in enumerate(vocabulary.pieces):
            if types[i] is PieceType.NORMAL and piece in lost:
                types[i] = PieceType.USER_DEFINED
        merges, _ = _split_all(vocabulary)
    return merges


def scores_of(
    pieces: Sequence[str], types: Sequence[PieceType], merges: Iterable[tuple[str, str]], where: str
) -> list[float]:
    """Scores whose `merges_of` is `merges`: 0, -1, -2 ... in the order the pieces are made, then the characters.

    Pieces that text cannot reach by merging get what llama.cpp's converter writes: -1000, bytes 0. Raises
    CheckpointError where the merges have no such scores (a tokenizer trained to one merge a piece): with them,
    text would tokenize differently in the other program, silently.
    """
    merges = list(merges)
    kind = dict(zip(pieces, types, strict=True))
    made = [p for p in dict.fromkeys(a + b for a, b in merges) if kind.get(p) is PieceType.NORMAL]
    rank = {piece: -float(i) for i, piece in enumerate(made)}
    for piece, piece_type in kind.items():
        if piece_type is PieceType.NORMAL and piece not in rank:
            rank[piece] = -float(len(rank))
    scores = [
        rank[piece] if t is PieceType.NORMAL else 0.0 if t is PieceType.BYTE else -1000.0
        for piece, t in zip(pieces, types, strict=True)
    ]
    read_back = Vocabulary(list(pieces), scores, list(types))
    if merges_of(read_back) != merges or read_back.types != list(types):
        raise CheckpointError(
            f"{where}: the merges must follow from an order of the pieces to be written as scores, "
            f"got {len(merges)} merges that do not.\n"
            "A GGUF file made from them would split text differently. Build the tokenizer with "
            "Tokenizer.from_vocabulary, which keeps every way to make a piece."
        )
    return scores


def _split_all(vocabulary: Vocabulary) -> tuple[list[tuple[str, str]], set[str]]:
    """Merges in order, and the pieces of two or more characters that none of them makes. 0.8 s for 262,144 pieces."""
    pieces, types, scores = vocabulary.pieces, vocabulary.types, vocabulary.scores
    known = {piece: i for i, piece in enumerate(pieces) if types[i] in _MADE_BY_MERGES}
    top = max((scores[i] for i in known.values() if types[i] is PieceType.NORMAL), default=0.0)
    rank = [top if t is PieceType.USER_DEFINED else score for t, score in zip(types, scores, strict=True)]
    order = sorted((i for piece, i in known.items() if len(piece) > 1), key=rank.__getitem__, reverse=True)
    merges: list[tuple[str, str]] = []
    unmade: set[str] = set()
    for _, group in groupby(order, key=rank.__getitem__):
        first, num_pieces = len(merges), 0
        for i in group:
            piece, num_before = pieces[i], len(merges)
            for cut in range(len(piece) - 1, 0, -1):
                left = piece[:cut]
                if left in known:
                    right = piece[cut:]
                    if right in known:
                        merges.append((left, right))
            num_pieces += 1
            if len(merges) == num_before:
                unmade.add(piece)
        if num_pieces > 1:
            merges[first:] = sorted(merges[first:], key=lambda m: (len(m[0]), len(m[1])), reverse=True)
    return merges, unmade


def _piece_types(types: Sequence[int], where: str) -> list[PieceType]:
    by_number = {int(t): t for t in PieceType}
    try:
        return [by_number[t] for t in types]
    except (KeyError, TypeError):
        i = next(i for i, t in enumerate(types) if t not in list(PieceType))
        raise CheckpointError(f"{where}: a piece's type must be 1 to 6, got {types[i]!r} for piece {i}.") from None


def _piece_text(piece: str | bytes, i: int, where: str) -> str:
    if isinstance(piece, str):
        return piece
    try:
        return bytes(piece).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{where}: a piece must be UTF-8, got {bytes(piece[:40])!r} for piece {i}.") from None


def _refuse_duplicates(pieces: Sequence[str], where: str) -> None:
    if len(set(pieces)) == len(pieces):
        return
    first: dict[str, int] = {}
    twice = [(piece, first[piece], i) for i, piece in enumerate(pieces) if first.setdefault(piece, i) != i]
    shown = ", ".join(f"{piece!r} at {a} and {b}" for piece, a, b in twice[:_SHOWN])
    raise CheckpointError(f"{where}: every piece must occur once, got {len(twice)} again: {shown}.")


def _refuse_missing(pieces: Sequence[str], where: str) -> None:
    """Raise unless the pieces Gemma cannot do without are there: `<bos>`, `<eos>` and the 256 bytes."""
    known = set(pieces)
    needed = ["<bos>", "<eos>", *map(byte_piece, range(256))]
    if missing := [piece for piece in needed if piece not in known]:
        shown = ", ".join(missing[:_SHOWN])
        raise CheckpointError(
            f"{where}: a Gemma vocabulary must have <bos>, <eos> and the 256 byte pieces, "
            f"got {len(pieces)} pieces without {shown}{' ...' if len(missing) > _SHOWN else ''}.\n"
            "The file is likely the tokenizer of another model."
        )


def _first_nan(ranks: Sequence[float]) -> int:
    return next(i for i, rank in enumerate(ranks) if rank != rank)
