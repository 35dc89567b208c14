"""The official vocabulary, written into a GGUF by us, splits text in llama.cpp as it does here."""

import random

import numpy as np
import pytest

from gemworks.model.config import TextConfig, five_local_one_global
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.checkpoint import Vocabulary, open_checkpoint
from gemworks.weights.gguf_write import write_gguf
from gemworks.weights.names import expected_shapes
from gemworks.weights.save import Source, save_hf

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
_QUIET = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(_QUIET, None)

# Pieces of text that tokenizers trip over; strings are made of up to eight of them. U+2581 itself is not
# among them: the published tokenizer has pieces for runs of it, which llama.cpp's form of the vocabulary spells as
# spaces.
SCRAPS = [
    *("Hello", " world", "the", "  ", "   ", "\n", "\n\n\n", "\t", "\r\n", " ", "1234", "3.14", "caf\u00e9", "e\u0301"),
    *("\u65e5\u672c\u8a9e", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0645\u0631\u062d\u0628\u0627", "\U0001f642"),
    *("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\u00a0", "\u3000", "\u2028", "<table>", "</td>", "<0x0A>"),
    *("<bos>", "<end_of_turn>", "<start_of_turn>user", "<unused7>", "[multimodal]"),
    *("def f(x):\n    return x", "\x00", "\x7f", "\ufffd", "\u09e7\u09e8", "don't", "A_b-C", "://", "$\\frac{1}{2}$"),
]


@pytest.fixture(scope="module")
def both(official, tmp_path_factory):
    """(our tokenizer, llama.cpp's) of one file whose weights are a stub."""
    directory = tmp_path_factory.mktemp("llama")
    config = TextConfig(
        vocab_size=262_144,
        model_dim=32,
        ffw_dim=32,
        num_heads=1,
        num_kv_heads=1,
        head_dim=32,
        query_scale=32**-0.5,
        layers=five_local_one_global(1, window=8),
        max_positions=64,
    )
    zeros = {
        name: Source("F32", lambda shape=shape: np.zeros(shape, np.float32))
        for name, shape in expected_shapes(config).items()
    }
    save_hf(directory / "model", config, zeros)
    tokenizer = Tokenizer.load(official)
    path = directory / "m.gguf"
    with open_checkpoint(directory / "model") as checkpoint:
        write_gguf(checkpoint, Vocabulary(*tokenizer.to_vocabulary()), path, "q8_0")
    with open_checkpoint(path) as checkpoint:
        ours = Tokenizer.from_vocabulary(*checkpoint.vocabulary())
    theirs = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=True)
    yield ours, theirs
    theirs.close()


@pytest.mark.parametrize("control", [False, True])
def test_2000_strings_split_alike(both, control):
    ours, theirs = both
    rng = random.Random(11)
    different = []
    for _ in range(2000):
        text = "".join(rng.choices(SCRAPS, k=rng.randint(1, 8)))
        wanted = theirs.tokenize(text.encode(), add_bos=False, special=control)
        if ours.encode(text, control=control) != wanted:
            different.append(text)
    assert different == []
