"""A table splits as the engine it was made from, and hands over to it."""

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.errors import RequestError
from gemworks.tokenizer import Tokenizer
from gemworks.tokenizer import tokenizer as module
from gemworks.tokenizer.table import VocabularyTable, table_arrays

CONTROLS = ["<unk>", "<start_of_turn>", "<bos>", "<end_of_turn>", "<eos>", "<unused7>", "[multimodal]", "<pad>"]
parts = st.sampled_from([*CONTROLS, "hello", " world", "  ", "\n", "\n\n\n\n", "\t", "<b>", "\u00e9", "\U00010348"])
texts = st.lists(parts | st.text(max_size=4), max_size=12).map("".join)


@pytest.fixture(scope="session")
def mapped(small):
    """The small tokenizer as a start that finds its table makes it; it must never need its engine."""

    def load():
        raise AssertionError("the engine was loaded")

    return Tokenizer.from_table(VocabularyTable(small.to_table()), load, "the cache")


@given(text=texts)
def test_ids_are_the_engines(small, mapped, text):
    assert mapped.encode(text) == small.encode(text)


def test_everything_else_is_the_engines_too(small, mapped):
    assert mapped.size == small.size and mapped.control_ids == small.control_ids
    for name in ("bos_id", "eos_id", "pad_id", "unk_id", "start_of_turn_id", "end_of_turn_id"):
        assert getattr(mapped, name) == getattr(small, name)
    everything = range(small.size)
    assert [mapped.token_bytes(i) for i in everything] == [small.token_bytes(i) for i in everything]
    assert [mapped.id_of(small._names[i]) for i in everything] == list(everything)
    assert mapped.id_of("never") is None and mapped.id_of("") is None
    assert mapped.decode(everything, skip_control=False) == small.decode(everything, skip_control=False)
    with pytest.raises(RequestError, match="lone surrogate"):
        mapped.encode("\ud800")
    with pytest.raises(RequestError, match="a token id must be between 0 and"):
        mapped.token_bytes(small.size)


def test_two_ways_to_one_piece_are_taken_as_the_engine_takes_them():
    """abc is made of ab + c (rank 1) and a + bc (rank 3): an entry left over from one of them still merges."""
    pieces = [
        "<unk>",
        "<bos>",
        "<eos>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *"abcd",
        "ab",
        "abc",
        "bc",
        "cd",
        "abcd",
    ]
    scores = [0.0] * 259 + [-90.0, -91.0, -92.0, -93.0, -4.0, -2.0, -1.0, -3.0, -5.0]
    types = [2, 3, 3, *[6] * 256, *[1] * 9]
    engine = Tokenizer.from_vocabulary(pieces, scores, types)
    table = VocabularyTable(engine.to_table())
    for length in range(1, 7):
        for letters in product("abcd", repeat=length):
            text = "".join(letters)
            assert table.encode(text) == engine.encode(text), text


def test_a_pair_given_twice_has_the_later_rank():
    arrays = table_arrays(["a", "b", "ab", "ba"], [("a", "b"), ("b", "a"), ("a", "b")], [], [])
    assert arrays["pairs"].tolist() == [1, 1 << 32] and arrays["ranks"].tolist() == [2, 1]
    assert arrays["made"].tolist() == [2, 3]


def test_control_tokens_in_text_load_the_engine_and_are_found(small):
    loaded = []
    tokenizer = Tokenizer.from_table(VocabularyTable(small.to_table()), lambda: loaded.append(1) or small, "x")
    assert tokenizer.encode("<eos>hello", control=True) == small.encode("<eos>hello", control=True)
    assert loaded == [1]


def test_the_engine_is_loaded_once_when_much_is_split(small, monkeypatch):
    monkeypatch.setattr(module, "_TABLE_CHARACTERS", 20)
    loaded = []
    tokenizer = Tokenizer.from_table(VocabularyTable(small.to_table()), lambda: loaded.append(1) or small, "x")
    for count in range(5):
        assert tokenizer.encode("hello world") == small.encode("hello world")
        assert len(loaded) == (count > 0)


def test_saving_and_writing_scores_use_the_engine(small, tmp_path):
    tokenizer = Tokenizer.from_table(VocabularyTable(small.to_table()), lambda: small, "x")
    assert tokenizer.to_vocabulary() == small.to_vocabulary()
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("hello world") == small.encode("hello world")


def test_tokens_with_rules_of_their_own_have_no_table(small, tmp_path):
    """A token that swallows the spaces before it is the engine's business."""
    small.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    token = next(token for token in whole["added_tokens"] if token["content"] == "<b>")
    token["lstrip"] = True
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert Tokenizer.load(path).to_table() is None
