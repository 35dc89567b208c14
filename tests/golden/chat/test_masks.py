"""Which tokens of 20 conversations are learned: as transformers finds them by offsets in the text (make_golden.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

from gemworks.data.chat_rendering import render
from gemworks.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(official):
    return Tokenizer.load(official)


def test_there_are_twenty():
    assert len(GOLDEN) == 20


@pytest.mark.parametrize("number", range(len(GOLDEN)))
def test_ids_and_mask(tokenizer, number):
    one = GOLDEN[number]
    made = render(tokenizer, one["messages"])
    assert made.ids.tolist() == one["ids"]
    wanted = np.repeat(np.arange(len(one["runs"])) % 2 == 1, one["runs"])
    assert np.flatnonzero(made.learned != wanted).size == 0, [
        tokenizer.piece(i) for i in made.ids[made.learned != wanted]
    ]
