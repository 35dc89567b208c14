"""Text of evaluation sets in training documents: runs of 12 words are found and cut out.

Every string of an evaluation item counts (question, answer, choices), and the item's strings in one run, so that an
answer right after its question is found, too. Strings of 8 to 11 words are looked for whole; shorter ones are not
(they would be found everywhere) and are counted. In scripts without spaces a run is 24 characters.

A run that is found is widened to whole words and replaced by "[...]"; the rest of the document stays, unless more than
a fifth of it was found.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.data.readers import Broken, documents, raw_batches
from gemworks.data.words import Words
from gemworks.errors import ConfigError

_WORDS, _SHORTEST, _CHARACTERS = 12, 8, 24
MASK = "[...]"
MAX_MASKED = 0.2  # of the words; beyond, the document is dropped (ours)


@dataclass(frozen=True)
class EvaluationIndex:
    """Sorted hashes of runs, by their length in words; `names` and `owners` tell which set a run is of."""

    hashes: dict[int, np.ndarray]
    owners: dict[int, np.ndarray]
    names: list[str]
    too_short: int

    @property
    def num_runs(self) -> int:
        """Different runs that are looked for."""
        return sum(found.size for found in self.hashes.values())


@dataclass(frozen=True)
class Contamination:
    """Word ranges of a document that are in an evaluation set, the share of its words, and the sets' names."""

    spans: list[tuple[int, int]]
    share: float
    names: list[str]


def build_index(files: Sequence[Path]) -> EvaluationIndex:
    """Return the index of evaluation files: JSONL with any string fields, or plain text. ConfigError if empty."""
    found: dict[int, list[np.ndarray]] = {}
    owned: dict[int, list[np.ndarray]] = {}
    names, too_short = [], 0
    for number, path in enumerate(files):
        names.append(path.name)
        for text in _texts(path):
            words = Words(text)
            lengths = (_CHARACTERS,) if not words.is_spaced else (_WORDS,)
            length = lengths[0]
            if words.is_spaced and _SHORTEST <= len(words.folded) < _WORDS:
                length = len(words.folded)
            grams = words.ngrams(length)
            too_short += grams.size == 0
            found.setdefault(length, []).append(grams)
            owned.setdefault(length, []).append(np.full(grams.size, number, np.int32))
    hashes, owners = {}, {}
    for length, parts in found.items():
        hashes[length], first = np.unique(np.concatenate(parts), return_index=True)
        owners[length] = np.concatenate(owned[length])[first]
    index = EvaluationIndex({n: h for n, h in hashes.items() if h.size}, owners, names, too_short)
    if files and not index.num_runs:
        raise ConfigError(
            f"{', '.join(names[:5])}: evaluation files must hold texts of at least {_SHORTEST} words, got none."
        )
    return index


def find_contamination(words: Words, index: EvaluationIndex) -> Contamination | None:
    """Return where a document repeats the evaluation sets, None where it does not."""
    covered = np.zeros(len(words.folded), bool)
    owners: set[int] = set()
    for length, known in index.hashes.items():
        if length == _CHARACTERS and not words.has_unspaced:
            continue
        grams = words.ngrams(length)
        at = np.minimum(np.searchsorted(known, grams), known.size - 1)
        hits = np.flatnonzero(known[at] == grams) if grams.size else np.empty(0, np.int64)
        for hit in hits.tolist():
            covered[hit : hit + length] = True
        owners.update(index.owners[length][at[hits]].tolist())
    if not covered.any():
        return None
    edges = np.flatnonzero(np.diff(np.concatenate([[False], covered, [False]]).astype(np.int8)))
    spans = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return Contamination(spans, float(covered.mean()), sorted(index.names[i] for i in owners))


def mask_contamination(text: str, words: Words, found: Contamination) -> str:
    """Return the text with the found runs replaced by [...]; whole words, their punctuation included."""
    places = word_places(text, words)
    parts, at = [], 0
    for first, end in found.spans:
        start, stop = places[first][0], places[end - 1][1]
        parts += [text[at:start], MASK]
        at = stop
    return "".join([*parts, text[at:]])


_CHUNK = re.compile(r"\S+")


def word_places(text: str, words: Words) -> list[tuple[int, int]]:
    """Return (start, end) in `text` of each of words.folded: of the characters between spaces that it lies in."""
    places: list[tuple[int, int]] = []
    for match in _CHUNK.finditer(text):
        chunk = match.group()
        own = Words(chunk)
        if own.has_unspaced and len(own.folded) > 1:
            places += _places_inside(chunk, match.start(), own.folded)
        else:
            places += [(match.start(), match.end())] * len(own.folded)
    assert len(places) == len(words.folded), "a word is folded alone as it is in its text"
    return places


def _places_inside(chunk: str, start: int, folded: list[str]) -> list[tuple[int, int]]:
    """Places of the characters of an unspaced chunk; marks between them belong to the one before."""
    lower, found, at = chunk.lower(), [], 0
    for word in folded:
        begin = lower.find(word[0], at)
        begin = at if begin < 0 else begin
        found.append((start + begin, start + min(len(chunk), begin + len(word))))
        at = begin + len(word)
    return found


def _texts(path: Path) -> Iterator[str]:
    for batch in raw_batches([path]):
        if batch.kind == ".jsonl" or batch.kind == ".ndjson" or batch.kind == ".parquet":
            yield from _item_texts(batch)
            continue
        for item in documents(batch):
            if isinstance(item, Broken):
                raise ConfigError(f"{item}. Evaluation files must be whole.")
            yield from (part for part in item.text.split("\n\n") if part.strip())


def _item_texts(batch: Any) -> Iterator[str]:
    import json

    for line, data in batch.records:
        try:
            item = json.loads(data or b"")
        except ValueError as error:
            if data is not None and not data.strip():
                continue
            raise ConfigError(
                f"{batch.file}, line {line}: not JSON: {error}. Evaluation files must be whole."
            ) from None
        strings = list(_strings(item))
        yield from strings
        if len(strings) > 1:
            yield " ".join(strings)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
