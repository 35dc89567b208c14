"""What `Tokenizer.save` writes, loaded by transformers' AutoTokenizer."""

import pytest

from gemworks.tokenizer import Tokenizer, render_chat

transformers = pytest.importorskip("transformers")

TEXTS = [
    "Hello, world!",
    "  lead\n\n\n\ta\r\n",
    "<start_of_turn>user\nhi<end_of_turn>",
    "<b>x</b> \u20ac \U00010348",
    "\n" * 40,
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello!\n"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
]


def compare(tokenizer, directory):
    tokenizer.save(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text, control=True)
        assert theirs.decode(ids) == tokenizer.decode(ids, skip_control=False)
    assert theirs("Hello")["input_ids"] == [tokenizer.bos_id, *tokenizer.encode("Hello")]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert (theirs.pad_token_id, theirs.unk_token_id) == (tokenizer.pad_id, tokenizer.unk_id)
    chat = theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert theirs(chat, add_special_tokens=False)["input_ids"] == render_chat(tokenizer, CHAT)


def test_the_official_vocabulary_from_a_sentencepiece_file(spm_file, tmp_path):
    compare(Tokenizer.load(spm_file), tmp_path)


def test_a_small_vocabulary_with_the_names_at_other_ids(tmp_path):
    words = ["he", "ll", "hell", "hello", "H", "\u2581w", "i", "\u2581", *"helowrduser.,!?Whyxabmt\n"]
    pieces = ["<unk>", "<start_of_turn>", "<bos>", *(f"<0x{b:02X}>" for b in range(256)), *dict.fromkeys(words)]
    pieces += ["\n\n", "<b>", "<end_of_turn>", "<eos>", "<pad>"]
    types = [3 if p in ("<unk>", "<start_of_turn>", "<bos>", "<end_of_turn>", "<eos>", "<pad>") else 1 for p in pieces]
    types = [
        6 if p.startswith("<0x") else 4 if p in ("\n", "\n\n", "<b>") else t for p, t in zip(pieces, types, strict=True)
    ]
    scores = [-float(i) for i in range(len(pieces))]
    compare(Tokenizer.from_vocabulary(pieces, scores, types), tmp_path)
