"""Training a tokenizer of Gemma's conventions: byte-fallback BPE through Hugging Face's `tokenizers`.

    0 ... 106     as in the official vocabulary: <pad> <eos> <bos> <unk> <mask> [multimodal], 99 unused,
                  <start_of_turn> 105, <end_of_turn> 106
    107 ...       runs of 1 to 31 newlines, runs of 2 to 31 spaces: whitespace is kept, and one token
    then          the 256 bytes, for every character that has no piece
    then          pieces of two or more characters, best first; the characters
    last          runs of 1 to 31 tabs, <start_of_image> <end_of_image> <image_soft_token>

A digit is a token of its own. No piece crosses from one word to the next, mixes letters with marks, or holds a digit
beside anything else; a word's piece may begin with the space before it. So the official rules of encoding, which see
the whole text as one segment, give the same ids as the rules of training.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from gemworks.data.readers import Document, documents, raw_batches
from gemworks.errors import ConfigError, StorageError
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.tokenizer.vocabulary import SPACE, PieceType, byte_piece

_LONGEST_RUN = 31
_LONGEST_PIECE = 16  # characters; text without spaces would otherwise make pieces of whole phrases
_CONTROL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"),
    *(f"<unused{i}>" for i in range(99)),
    *("<start_of_turn>", "<end_of_turn>"),
)
_IMAGE = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
_LETTERS = r"\p{L}\p{M}"
# A word with the space before it; a digit; marks with the space before them; any whitespace by itself.
_WORDS = Regex(rf"{SPACE}?[{_LETTERS}]+|\p{{N}}|{SPACE}?[^{_LETTERS}\p{{N}}\s{SPACE}]+|[\s{SPACE}]")
_WORDS_AND_SINGLE_MARKS = Regex(rf"{SPACE}?[{_LETTERS}]+|[^{_LETTERS}]")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]+")  # newlines and tabs have their pieces, the others are bytes
_ASCII = SPACE + "".join(map(chr, range(33, 127)))


def train_tokenizer(
    texts: Iterable[str], size: int, *, alphabet: str = _ASCII, max_characters: int = 4096, merge_marks: bool = True
) -> Tokenizer:
    """Return a tokenizer of exactly `size` pieces, the most useful for `texts`, which are read once.

    `alphabet` are characters that get a piece however rare; up to max_characters in all, the commonest of the texts.
    merge_marks=False keeps marks apart ("..." stays three tokens). `tokenizer.save(directory)` writes tokenizer.json.
    Raises ConfigError where `size` is too small for what every vocabulary has, or the texts for `size`.
    """
    first = [*((name, PieceType.CONTROL) for name in _CONTROL)]
    first += [("\n" * n, PieceType.USER_DEFINED) for n in range(1, _LONGEST_RUN + 1)]
    first += [(SPACE * n, PieceType.USER_DEFINED) for n in range(2, _LONGEST_RUN + 1)]
    first += [(byte_piece(value), PieceType.BYTE) for value in range(256)]
    last = [("\t" * n, PieceType.USER_DEFINED) for n in range(1, _LONGEST_RUN + 1)]
    last += [(name, PieceType.CONTROL) for name in _IMAGE]
    room = size - len(first) - len(last)
    if room < len(set(alphabet)):
        raise ConfigError(
            f"the size of a vocabulary must be at least {len(first) + len(last) + len(set(alphabet))} "
            f"({len(first) + len(last)} control tokens, runs and bytes, {len(set(alphabet))} characters), got {size}."
        )
    pieces, characters = _trained(texts, room, alphabet, min(max_characters, room), merge_marks)
    normal = [(piece, PieceType.NORMAL) for piece in (*pieces, *characters)]
    names, types = zip(*first, *normal, *last, strict=True)
    # The score of a piece is the rank at which it is made; every way to cut it in two becomes a merge of that rank.
    scores = [-float(i) if kind is PieceType.NORMAL else 0.0 for i, kind in enumerate(types)]
    return Tokenizer.from_vocabulary(names, scores, types, where="the trained tokenizer")


def texts_of(
    files: Sequence[Path], progress: Callable[[int, int], None] | None = None, *, stop_on_broken: bool = False
) -> Iterator[str]:
    """Yield the texts of sources, to train on. progress(bytes, total). Broken lines are skipped, or a StorageError."""
    done, total = 0, sum(path.stat().st_size for path in files)
    for batch in raw_batches(files):
        for item in documents(batch):
            if isinstance(item, Document):
                yield item.text
            elif stop_on_broken:
                raise StorageError(f"{item}.\nLeave --stop-on-broken out to skip such lines.")
        done += batch.num_bytes
        if progress is not None:
            progress(min(done, total), total)


def _trained(
    texts: Iterable[str], room: int, alphabet: str, max_characters: int, merge_marks: bool
) -> tuple[list[str], list[str]]:
    """(pieces of two or more characters in the order BPE makes them, characters), `room` in all."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.normalizer = normalizers.Replace(" ", SPACE)
    engine.pre_tokenizer = pre_tokenizers.Split(_WORDS if merge_marks else _WORDS_AND_SINGLE_MARKS, "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        initial_alphabet=list(dict.fromkeys(alphabet)),
        limit_alphabet=max_characters,
        max_token_length=_LONGEST_PIECE,
        show_progress=False,
    )
    engine.train_from_iterator((part for text in texts for part in _CONTROLS.split(text)), trainer)
    by_id = [piece for piece, _ in sorted(engine.get_vocab().items(), key=lambda item: item[1])]
    if len(by_id) < room:
        raise ConfigError(
            f"the texts give {len(by_id):,} pieces and characters, {room:,} are needed.\n"
            "Give more text, or a smaller size."
        )
    characters = {piece for piece in by_id if len(piece) == 1}
    own = [character for character in dict.fromkeys(alphabet) if character in characters]
    return [piece for piece in by_id if len(piece) > 1], own + sorted(characters - set(own))
