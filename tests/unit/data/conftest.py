"""Documents, a tokenizer of bytes and letters, and a packed store for the tests of gemworks.data."""

import json
import random
import string

import pytest

from gemworks.data.tokenizing import PackOptions, pack
from gemworks.tokenizer import Tokenizer

WORDS = (
    *("the", "of", "and", "to", "in", "was", "it", "his", "that", "he", "with", "for", "as", "had", "at", "by", "on"),
    *("not", "be", "have", "said"),
)
NOUNS = (
    *("boat", "river", "garden", "teacher", "window", "letter", "winter", "market", "bridge", "doctor", "island"),
    *("machine", "forest"),
)


def sentence(rng: random.Random) -> str:
    """An English-looking sentence of 8 to 16 words."""
    words = [rng.choice(WORDS if i % 2 else NOUNS) for i in range(rng.randint(8, 16))]
    return " ".join(words).capitalize() + "."


def text(rng: random.Random, sentences: int) -> str:
    """Paragraphs of four sentences."""
    made = [sentence(rng) for _ in range(sentences)]
    return "\n\n".join(" ".join(made[i : i + 4]) for i in range(0, sentences, 4))


@pytest.fixture(scope="session")
def documents():
    """40 documents of 8 to 60 sentences in two groups."""
    rng = random.Random(7)
    return [
        {"text": text(rng, rng.randint(8, 60)), "lang": "en" if i % 3 else "de", "source": "made", "title": f"t{i}"}
        for i in range(40)
    ]


@pytest.fixture
def write(tmp_path):
    """write("a.jsonl", records) -> Path."""

    def make(name, records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """Directory with a tokenizer of bytes, letters and whitespace runs."""
    rows = [(name, 0.0, 3) for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")]
    rows += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)] + [("\n", 0.0, 4), ("\n\n", 0.0, 4)]
    rows += [(letter, -float(i), 1) for i, letter in enumerate(string.ascii_letters + string.digits + ".,\u2581")]
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.from_vocabulary(*map(list, zip(*rows, strict=True))).save(folder)
    return folder


@pytest.fixture(scope="session")
def packed(documents, tokenizer_dir, tmp_path_factory):
    """A packed store of the documents in rows of 64."""
    folder = tmp_path_factory.mktemp("packed")
    source = folder / "documents.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    pack([source], folder / "store", PackOptions(tokenizer=str(tokenizer_dir), length=64, seed=5))
    return folder / "store"
