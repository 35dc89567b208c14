"""The official vocabulary, from beside the repository; tests skip where it is absent."""

import json
import struct
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def official_json(official) -> dict:
    whole = json.loads((official / "tokenizer.json").read_text(encoding="utf-8"))
    # Half a million lists that live on make every garbage collection slow; tuples of strings are not tracked.
    whole["model"]["merges"] = [tuple(pair) for pair in whole["model"]["merges"]]
    return whole


@pytest.fixture(scope="session")
def spm_lists(official_json):
    """(pieces, scores, types) as in Google's tokenizer.model: reserved names user-defined, runs with score 0."""
    vocab = official_json["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.__getitem__)
    added = {token["content"] for token in official_json["added_tokens"]}
    types = [4 if piece in added else 6 if 238 <= i < 494 else 1 for i, piece in enumerate(pieces)]
    types[:4] = [3, 3, 3, 2]
    scores = [-float(i - 494) if t == 1 else 0.0 for i, t in enumerate(types)]
    return pieces, scores, types


@pytest.fixture(scope="session")
def spm_file(spm_lists, tmp_path_factory) -> Path:
    """A tokenizer.model of these lists. Every piece is shorter than 128 bytes, so lengths are one byte."""
    out = bytearray()
    for piece, score, kind in zip(*spm_lists, strict=True):
        text = piece.encode()
        message = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
        message += b"" if kind == 1 else b"\x18" + bytes([kind])
        out += b"\x0a" + bytes([len(message)]) + message
    out += b"\x12\x05\x18\x02\x98\x02\x01"  # trainer_spec: model_type BPE, byte_fallback
    out += b"\x1a\x04\x18\x00\x20\x00"  # normalizer_spec: no dummy prefix, no whitespace removed
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    path.write_bytes(out)
    return path
