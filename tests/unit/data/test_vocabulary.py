import json
import random

import pytest

from gemworks.data.vocabulary import train_tokenizer
from gemworks.errors import ConfigError
from gemworks.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(documents):
    code = "def add(a, b):\n\treturn a == b  # 1234 items\n"
    return train_tokenizer([d["text"] for d in documents] + [code * 20, "caf\u00e9 \u4e2d\u6587 " * 30], 700)


def pieces(tokenizer, text):
    return [tokenizer.piece(i) for i in tokenizer.encode(text)]


def test_the_layout_is_gemmas(tokenizer):
    names = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "[multimodal]": 5, "<unused0>": 6}
    names |= {"<unused98>": 104, "<start_of_turn>": 105, "<end_of_turn>": 106, "\n": 107, "<image_soft_token>": 699}
    assert {name: tokenizer.id_of(name) for name in names} == names
    assert tokenizer.size == 700
    assert {i for i in range(700) if tokenizer.piece(i) in names} - set(names.values()) == set()


@pytest.mark.parametrize(
    "text",
    ["", " ", "  a", "a\n\n\n\tb", "\u00e9\u4e2d\u6587\U0001f600\x07\r\n", "1234.5", "<end_of_turn>", "\u00ad\u200d"],
)
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_and_whitespace_keep_the_conventions(tokenizer):
    assert pieces(tokenizer, "1234") == ["1", "2", "3", "4"]
    assert pieces(tokenizer, "the    boat\n\n\nriver")[1:3] != []
    found = pieces(tokenizer, "the \n\n\n\t\t    boat")
    assert "\n\n\n" in found
    assert "\t\t" in found
    assert any(piece.startswith(" ") and piece.strip() for piece in pieces(tokenizer, "the boat of"))


def test_no_piece_crosses_a_word_or_holds_a_digit(tokenizer):
    for i in range(tokenizer.size):
        piece = tokenizer.piece(i)
        if i in tokenizer.control_ids or piece.startswith("<0x") or len(piece) == 1:
            continue
        assert " " not in piece[1:] or not piece.strip()
        assert not any(map(str.isdigit, piece))
        assert len(piece) <= 31


def test_what_is_saved_is_what_is_loaded(tokenizer, tmp_path, documents):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    for document in documents[:3]:
        assert again.encode(document["text"]) == tokenizer.encode(document["text"])
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model["type"] == "BPE"
    assert model["byte_fallback"]


def test_common_words_are_one_piece(tokenizer):
    rng = random.Random(0)
    words = rng.sample(["garden", "teacher", "window", "machine", "island"], 5)
    assert [len(tokenizer.encode(f" {word}")) for word in words] == [1] * 5


def test_sizes_that_cannot_be_are_refused(documents):
    with pytest.raises(ConfigError, match=r"must be at least 553 \(458 control tokens, runs and bytes, 95 char"):
        train_tokenizer(["a"], 300)
    with pytest.raises(ConfigError, match=r"the texts give \d+ pieces and characters, [\d,]+ are needed"):
        train_tokenizer(["a few words only"], 4000)
