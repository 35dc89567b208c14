"""A chat model of 30 thousand parameters on disk, with a tokenizer of letters: for tests of tuning."""

import string
from pathlib import Path

from small_models import random_arrays, small_config

from gemworks.model.config import LayerSpec, TextConfig
from gemworks.tokenizer import Tokenizer
from gemworks.weights.save import Source, save_hf

LOCAL = LayerSpec(window=16, rope_base=10_000.0)
GLOBAL = LayerSpec(window=None, rope_base=1e6)


def letters_tokenizer() -> Tokenizer:
    """Bytes, letters and digits, whitespace runs and the control tokens of chats."""
    rows = [(name, 0.0, 3) for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")]
    rows += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)] + [("\n", 0.0, 4), ("\n\n", 0.0, 4)]
    rows += [(letter, -float(i), 1) for i, letter in enumerate(string.ascii_letters + string.digits + ".,\u2581")]
    return Tokenizer.from_vocabulary(*map(list, zip(*rows, strict=True)))


def chat_config(*, model_dim: int = 32, **changes) -> TextConfig:
    """A local and a global layer; a row for every piece of the tokenizer, and some more."""
    shape = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "vocab_size": 336, "max_positions": 256}
    return small_config(model_dim=model_dim, layers=(LOCAL, GLOBAL), **shape | changes)


def save_chat_model(folder: Path, config: TextConfig | None = None, *, spread: float = 0.1) -> Path:
    """Write the model with its tokenizer as a directory and return it."""
    config = config or chat_config()
    arrays = random_arrays(config, 3, spread=spread)

    def source(name: str) -> Source:
        return Source("F32", lambda: arrays[name])

    tokenizer = letters_tokenizer()
    save_hf(folder, config, {name: source(name) for name in arrays}, beside=lambda inside: tokenizer.save(inside))
    return folder


def lessons(count: int) -> list[dict]:
    """Conversations that have something to learn: the answer is the question's letters in capitals."""
    found = []
    for i in range(count):
        word = "".join(string.ascii_lowercase[(i * k + k) % 26] for k in (1, 3, 7, 11))
        found.append({"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word.upper()}]})
    return found
