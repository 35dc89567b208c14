"""The studies' text: one group of the corpus, split by hash, with a vocabulary of its own, packed twice.

Fact sheets are chosen (3.14M tokens of 1,024 words): a model of 0.1M parameters learns their form within minutes, and
names and figures that come again and again, at any distance, are what attention can use. No run sees a row twice.

A document is held out where SHA-256 of its text, as a number, is divisible by 50.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gemworks.data.readers import find_files
from gemworks.data.tokenizing import PackOptions, pack
from gemworks.data.vocabulary import texts_of, train_tokenizer
from gemworks.data.writing import replace_file
from gemworks.errors import ConfigError
from recipes.ablations.plan import Plan

HELD_OUT_OF = 50


class Corpus(NamedTuple):
    """Directories: a tokenizer, and the packed rows to train on and to measure with."""

    tokenizer: Path
    train: Path
    held: Path


def prepare(out: Path, source: str, plan: Plan) -> Corpus:
    """Return the corpus below `out`, made where it is not there. source: the path of JSONL files with "*"."""
    texts, made = out / "texts", Corpus(out / "tokenizer", out / "train", out / "held")
    texts.mkdir(parents=True, exist_ok=True)
    _split(texts, source)
    if not (made.tokenizer / "tokenizer.json").is_file():
        made.tokenizer.mkdir(exist_ok=True)
        train_tokenizer(texts_of([texts / "train.jsonl"]), plan.vocabulary, max_characters=256).save(made.tokenizer)
    options = PackOptions(tokenizer=str(made.tokenizer), length=plan.tokens, by="")
    for path in (made.train, made.held):
        if not (path / "header.json").is_file():
            pack(find_files([texts / f"{path.name}.jsonl"]), path, options)
    return made


def is_held_out(text: str) -> bool:
    """Whether a document is measured with and never trained on."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_OUT_OF == 0


def _split(texts: Path, source: str) -> None:
    """Write train.jsonl and held.jsonl, unless both are there."""
    paths = [texts / name for name in ("train.jsonl", "held.jsonl")]
    if all(path.is_file() for path in paths):
        return
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for text in _texts(source):
        parts[is_held_out(text)].append(json.dumps({"text": text}).encode() + b"\n")
    if not all(parts):
        raise ConfigError(
            f"{source}: must have documents to train on and to hold out, got {len(parts[0])} and {len(parts[1])}."
        )
    for path, lines in zip(paths, parts, strict=True):
        replace_file(path, b"".join(lines))


def _texts(source: str) -> Iterator[str]:
    pattern = Path(source)
    for path in sorted(pattern.parent.glob(pattern.name)):
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
