"""A tokenizer that we train is one for transformers, too."""

import json
import lzma

import pytest

from gemworks.data.vocabulary import train_tokenizer


@pytest.fixture(scope="module")
def texts(shared_data):
    with lzma.open(shared_data / "corpus" / "multilingual-00.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file][-60:]


def test_transformers_gives_the_same_ids(texts, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = train_tokenizer(texts, 2000)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mixed = [*texts, "  def f(x):\n\n\treturn 1234 \U0001f600\x07", "a\u0301 \u4e2d\u6587  ", ""]
    for text in mixed:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text, control=True)
    assert theirs("a")["input_ids"][0] == ours.bos_id
    turn = "<start_of_turn>user\nHi<end_of_turn>\n"
    assert theirs(turn, add_special_tokens=False)["input_ids"] == ours.encode(turn, control=True)
    assert theirs.convert_tokens_to_ids("<image_soft_token>") == ours.id_of("<image_soft_token>")
