"""How often a kept document should be seen: importance weights instead of a hard cut (after Sachdeva et al. 2024).

    density      1 / (how many documents are like it)^power: rare text is seen more, boilerplate less. The density is
                 a kernel estimate: for each of 32 hash functions, how many documents share this document's MinHash
                 value, averaged (the RACE sketch; its kernel is the Jaccard similarity of 5-word shingles).
    reference    a classifier's odds that a document is from a set of good texts that you give: hashed words and pairs
                 of words, naive Bayes (as DSIR, Xie et al. 2023), per word, so that long texts do not win by length.

Weights have mean 1 and lie in 1/4 ... 4 before that: what is rated low is seen less often, not never. The report says
only that Gemma 3's reweighing was inspired by Sachdeva et al.; the two forms, the power and the bounds are ours.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gemworks.data.readers import Broken, documents, raw_batches
from gemworks.data.words import Words
from gemworks.errors import ConfigError

_HASHES, _TABLE = 32, 2**16
_POWER = 0.5
_LEAST, _MOST = 0.25, 4.0
_FEATURES = 2**16
_SHARPNESS = 4.0  # weight = exp(sharpness * (log-odds a word - their median))


def density_weights(hashes: np.ndarray, block: int = 2**14) -> np.ndarray:
    """Return a weight for each of uint32 [documents, 112] hashes, float32. Memory: 4 bytes a document and 17 MB."""
    count = hashes.shape[0]
    tables = np.zeros((_HASHES, _TABLE), np.int64)
    for at in range(0, count, block):
        cells = np.asarray(hashes[at : at + block, :_HASHES]) & np.uint32(_TABLE - 1)
        for i in range(_HASHES):
            tables[i] += np.bincount(cells[:, i], minlength=_TABLE)
    density = np.empty(count, np.float32)
    for at in range(0, count, block):
        cells = np.asarray(hashes[at : at + block, :_HASHES]) & np.uint32(_TABLE - 1)
        density[at : at + block] = np.mean([tables[i][cells[:, i]] for i in range(_HASHES)], axis=0)
    # Two unlike documents share a cell by chance once in 65,536: that floor is taken off.
    alike = np.maximum(density - (count - 1) / _TABLE, 1.0)
    return bounded(alike**-_POWER)


def bounded(weights: np.ndarray) -> np.ndarray:
    """Return weights of mean 1, no one above 16 times another."""
    if not weights.size:
        return weights.astype(np.float32)
    middle = np.median(weights)
    kept = np.clip(weights / (middle or 1.0), _LEAST, _MOST)
    return (kept / kept.mean()).astype(np.float32)


class ReferenceClassifier:
    """Log-odds a word that a text is from the reference rather than from the rest. Counts of both are added first."""

    def __init__(self) -> None:
        self._good = np.ones(_FEATURES)
        self._all = np.ones(_FEATURES)
        self._ratio: np.ndarray | None = None

    def add_reference(self, files: Sequence[Path]) -> None:
        """Count the features of good texts. ConfigError where the files hold none."""
        number = 0
        for batch in raw_batches(files):
            for item in documents(batch):
                if isinstance(item, Broken):
                    raise ConfigError(f"{item}. Reference files must be whole.")
                self._good += features(item.text)
                number += 1
        if not number:
            raise ConfigError(f"{', '.join(map(str, files[:3]))}: a reference must hold a document, got none.")

    def add(self, text: str) -> None:
        """Count the features of a document to be weighed."""
        self._all += features(text)

    def log_odds(self, text: str) -> float:
        """Return the mean over a text's features of log p(feature | reference) - log p(feature | all)."""
        found = features(text)
        if self._ratio is None:  # all documents are counted before the first is weighed
            self._ratio = np.log(self._good / self._good.sum()) - np.log(self._all / self._all.sum())
        return float(found @ self._ratio / max(1.0, found.sum()))


def reference_weights(log_odds: Iterable[float]) -> np.ndarray:
    """Return weights from the log-odds of all documents."""
    odds = np.fromiter(log_odds, np.float64)
    if not odds.size:
        return odds.astype(np.float32)
    return bounded(np.exp(np.clip(_SHARPNESS * (odds - np.median(odds)), -20, 20)))


def features(text: str) -> np.ndarray:
    """Return counts of hashed words and pairs of words, [65,536]."""
    words = Words(text)
    cells = np.concatenate([words.ngrams(1), words.ngrams(2)]) >> np.uint64(48)
    return np.bincount(cells.astype(np.int64), minlength=_FEATURES)
