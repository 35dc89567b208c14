"""The tokenizer of `tiny` and what constrains answers in its vocabulary."""

import pytest
from drawing import ends

from gemworks.text.grammar import GrammarEngine
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.hub import TINY


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.load(TINY)


@pytest.fixture(scope="module")
def engine(tokenizer):
    return GrammarEngine(tokenizer, vocab=tokenizer.size + 5, end_ids=ends(tokenizer))
