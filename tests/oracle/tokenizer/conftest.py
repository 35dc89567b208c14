"""The official vocabulary as other libraries read it; tests skip where it is absent."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def spm_file(official, tmp_path_factory) -> Path:
    """A tokenizer.model with the official pieces, written with protobuf's own classes and loaded by sentencepiece."""
    pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="needs protobuf, with transformers")
    published = json.loads((official / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"] for token in published["added_tokens"]}
    kinds = pb.ModelProto.SentencePiece
    proto = pb.ModelProto()
    for piece, i in sorted(published["model"]["vocab"].items(), key=lambda item: item[1]):
        entry = proto.pieces.add(piece=piece, score=0.0, type=kinds.USER_DEFINED)
        if i < 4:
            entry.type = kinds.UNKNOWN if piece == "<unk>" else kinds.CONTROL
        elif 238 <= i < 494:
            entry.type = kinds.BYTE
        elif piece not in added:
            entry.type, entry.score = kinds.NORMAL, -float(i - 494)
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(proto.pieces)
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = 0, 1, 2, 3
    spec.pad_piece, spec.eos_piece, spec.bos_piece = "<pad>", "<eos>", "<bos>"
    rules = proto.normalizer_spec
    rules.name, rules.add_dummy_prefix, rules.remove_extra_whitespaces = "identity", False, False
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    return path
