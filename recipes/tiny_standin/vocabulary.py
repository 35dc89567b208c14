"""The tokenizer of `tiny`: trained with Hugging Face's `tokenizers`, laid out and built as Gemma's is.

    0 ... 167     as in the official vocabulary: <pad> <eos> <bos> <unk> <mask> [multimodal], 99 unused,
                  <start_of_turn> 105, <end_of_turn> 106, runs of 1 to 31 newlines, runs of 2 to 31 spaces
    168 ... 423   the 256 bytes (238 in the official one, which has HTML tags before them)
    424 ...       pieces of two or more characters, best first; then the characters; tabs; the three image tokens

No piece crosses a word, holds a digit beside anything else, or mixes letters with marks, so the official rules
(one segment for the whole text, no pre-tokenizer that splits) give the same ids as the rules it was trained with.
"""

import string
from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.tokenizer.vocabulary import SPACE, PieceType, byte_piece

SIZE = 768
_LONGEST_RUN = 31
_CHARACTERS = SPACE + "".join(c for c in string.printable if c.isprintable() and c != " ")
_LAST = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of SIZE pieces, the most useful for `texts`."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", *(f"<unused{i}>" for i in range(99))]
    control += ["<start_of_turn>", "<end_of_turn>"]
    newlines = ["\n" * n for n in range(1, _LONGEST_RUN + 1)]
    spaces = [SPACE * n for n in range(2, _LONGEST_RUN + 1)]
    tabs = ["\t" * n for n in range(1, _LONGEST_RUN + 1)]
    first = [*((name, PieceType.CONTROL) for name in control), *((run, PieceType.USER_DEFINED) for run in newlines)]
    first += [(run, PieceType.USER_DEFINED) for run in spaces]
    first += [(byte_piece(value), PieceType.BYTE) for value in range(256)]
    last = [(character, PieceType.NORMAL) for character in _CHARACTERS]
    last += [*((run, PieceType.USER_DEFINED) for run in tabs), *((name, PieceType.CONTROL) for name in _LAST)]
    merged = _best_pieces(texts, SIZE - len(first) - len(last))
    vocabulary = [*first, *((piece, PieceType.NORMAL) for piece in merged), *last]
    pieces, types = zip(*vocabulary, strict=True)
    # The score of a piece is the rank at which it is made; every way to cut it in two becomes a merge of that rank.
    scores = [-float(i) if t is PieceType.NORMAL else 0.0 for i, t in enumerate(types)]
    return Tokenizer.from_vocabulary(pieces, scores, types, where="the tokenizer of tiny")


def _best_pieces(texts: Iterable[str], number: int) -> list[str]:
    """`number` pieces of two or more characters in the order BPE makes them."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.normalizer = normalizers.Replace(" ", SPACE)
    # A word with the space before it, or one digit, or one mark.
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{SPACE}?[A-Za-z]+|[^A-Za-z]"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=number + len(_CHARACTERS), initial_alphabet=list(_CHARACTERS), show_progress=False
    )
    engine.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    by_id = sorted((i, piece) for piece, i in engine.get_vocab().items() if len(piece) > 1)
    assert len(by_id) == number, f"the texts gave {len(by_id)} pieces, {number} were asked for"
    return [piece for _, piece in by_id]
