import pytest

from gemworks.errors import CheckpointError
from gemworks.tokenizer import Tokenizer
from gemworks.tokenizer.vocabulary import PieceType, Vocabulary, is_control_name, merges_of

TEXTS = [
    "hello world",
    "a  b   c    d",
    "\n\n\n\n\n",
    "in\u2581the\u2581\u2581end",
    "<b>\t\t<start_of_turn>\u00e9\u20ac",
    "aaaaa",
    "\u2581\u2581 the",
]


def changed(lists, piece, *, name=None, score=None, kind=None):
    """The lists with another name, score or type for one piece."""
    pieces, scores, types = (list(column) for column in lists)
    i = pieces.index(piece)
    pieces[i] = pieces[i] if name is None else name
    scores[i] = scores[i] if score is None else score
    types[i] = types[i] if kind is None else kind
    return pieces, scores, types


def refusal(lists):
    with pytest.raises(CheckpointError) as error:
        Tokenizer.from_vocabulary(*lists, where="m.gguf")
    return str(error.value)


def test_every_cut_of_a_piece_is_a_merge_and_the_best_score_comes_first(small_lists):
    """Longest left part first within a piece; the whitespace runs, taken before any merge, with the best score."""
    merges = merges_of(Vocabulary.checked(*small_lists, "v"))
    assert merges[:6] == [
        ("\n\n", "\n"),
        ("\u2581\u2581", "\u2581"),
        ("\n", "\n\n"),
        ("\u2581", "\u2581\u2581"),
        ("h", "e"),
        ("\n", "\n"),
    ]
    assert merges[6:12] == [("\u2581", "\u2581"), ("l", "l"), ("i", "n"), ("he", "ll"), ("hell", "o"), ("o", "r")]
    assert merges[-3:] == [("\u2581", "the"), ("in", "g"), ("a", "a")]


def test_cuts_of_one_piece_come_longest_left_part_first():
    names, ranks = ["a", "b", "ab", "ba", "aba", "ababa"], [-9.0, -9.0, 0.0, -2.0, -1.0, -3.0]
    merges = merges_of(Vocabulary(names, ranks, [PieceType.NORMAL] * 6))
    assert merges == [("a", "b"), ("ab", "a"), ("a", "ba"), ("b", "a"), ("aba", "ba"), ("ab", "aba")]


def test_written_and_read_back_the_lists_are_the_same(small, small_lists):
    pieces, scores, types = small.to_vocabulary()
    assert (pieces, types) == (small_lists[0], small_lists[2])
    normal = [i for i, t in enumerate(types) if t == 1]
    assert sorted(normal, key=scores.__getitem__) == sorted(normal, key=small_lists[1].__getitem__)
    assert {scores[i] for i, t in enumerate(types) if t in (3, 4)} == {-1000.0}
    again = Tokenizer.from_vocabulary(pieces, scores, types)
    for text in TEXTS:
        assert again.encode(text) == small.encode(text)
        assert again.encode(text, control=True) == small.encode(text, control=True)


def test_rows_of_the_embedding_pad_or_cut_the_lists(small):
    pieces, scores, types = small.to_vocabulary(320)
    assert (pieces[302], pieces[-1]) == ("[PAD302]", "[PAD319]")
    assert (len(pieces), len(scores), len(types)) == (320, 320, 320)
    assert types[302:] == [5] * 18
    assert Tokenizer.from_vocabulary(pieces, scores, types).size == 302
    assert small.to_vocabulary(300)[0][-1] == "<unused7>"


def test_a_writer_that_lost_the_user_defined_types_gives_the_same_ids(small, small_lists):
    """Ollama's converter writes newline runs, space runs and HTML tags as normal pieces."""
    pieces, scores, types = small_lists
    lost = [piece.replace(" ", "\u2581") for piece in pieces]
    as_in_spm = [0.0 if t in (3, 4) else score for t, score in zip(types, scores, strict=True)]
    again = Tokenizer.from_vocabulary(lost, as_in_spm, [1 if t in (3, 4) else t for t in types])
    for text in TEXTS:
        assert again.encode(text) == small.encode(text)
        assert again.encode(text, control=True) == small.encode(text, control=True)


def test_reserved_names_are_control_tokens_whatever_the_type(small, small_lists):
    for kind in (PieceType.NORMAL, PieceType.USER_DEFINED):
        again = Tokenizer.from_vocabulary(*changed(small_lists, "<start_of_turn>", kind=kind))
        assert again.control_ids == small.control_ids
    assert [is_control_name(n) for n in ("<mask>", "<unused6241>", "<unused>", "<b>", "user")] == [True] * 2 + [
        False
    ] * 3


def test_a_control_token_of_a_fine_tune_is_one(small_lists):
    again = Tokenizer.from_vocabulary(*changed(small_lists, "<unused7>", name="<|tool|>"))
    assert 299 in again.control_ids
    assert 299 not in again.encode("<|tool|>")
    assert again.encode("<|tool|>", control=True) == [299]


def test_a_vocabulary_with_images_gets_the_soft_token(small_lists):
    again = Tokenizer.from_vocabulary(*changed(small_lists, "<unused7>", name="<start_of_image>"))
    assert again.id_of("<image_soft_token>") == 302
    assert 302 in again.control_ids


def test_merges_that_no_scores_stand_for_are_refused(small, tmp_path):
    """With one merge a piece (as a trainer leaves them), llama.cpp would find others: refused, not silently written."""
    import json

    small.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text())
    assert len(saved["model"]["merges"]) == 20
    saved["model"]["merges"].remove(["\u2581", "\u2581\u2581"])
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError) as error:
        Tokenizer.load(path).to_vocabulary()
    assert str(error.value) == (
        f"{path}: the merges must follow from an order of the pieces to be written as scores, "
        "got 19 merges that do not.\n"
        "A GGUF file made from them would split text differently. Build the tokenizer with "
        "Tokenizer.from_vocabulary, which keeps every way to make a piece."
    )


def test_unequal_lists_are_refused(small_lists):
    pieces, scores, types = small_lists
    assert refusal((pieces, scores[1:], types)) == (
        "m.gguf: pieces, scores and types must be equally long, got 302, 301 and 302."
    )


def test_duplicate_pieces_are_named(small_lists):
    assert refusal(changed(small_lists, "hell", name="he")) == (
        "m.gguf: every piece must occur once, got 1 again: 'he' at 259 and 262."
    )


def test_types_scores_and_text_are_checked(small_lists):
    assert refusal(changed(small_lists, "hell", kind=9)) == (
        "m.gguf: a piece's type must be 1 to 6, got 9 for piece 262."
    )
    assert refusal(changed(small_lists, "hell", score=float("nan"))) == (
        "m.gguf: every score must be a number, got NaN for 'hell'."
    )
    assert refusal(changed(small_lists, "hell", name=b"\xffx")) == (
        "m.gguf: a piece must be UTF-8, got b'\\xffx' for piece 262."
    )


def test_another_models_vocabulary_is_refused(small_lists):
    assert refusal(changed(small_lists, "<bos>", name="<s>")) == (
        "m.gguf: a Gemma vocabulary must have <bos>, <eos> and the 256 byte pieces, "
        "got 302 pieces without <bos>.\nThe file is likely the tokenizer of another model."
    )
    assert refusal(([], [], [])).startswith(
        "m.gguf: a Gemma vocabulary must have <bos>, <eos> and the 256 byte pieces, got 0 pieces without <bos>, <eos>,"
    )
