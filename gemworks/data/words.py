"""A text as words, whatever its script, and the words as 64-bit hashes that all n-gram rules share.

Scripts without spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan) are taken character by character;
rules that count words do not apply to a text that is mostly of those (`is_spaced`). Words are compared in lower case
and without punctuation and symbols, which are told by Unicode category, not by a list of ASCII characters.
"""

import hashlib
import re
import sys
import unicodedata
from functools import cache, cached_property
from importlib.resources import files

import numpy as np

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Ends of sentences: Latin, Armenian, Arabic, Urdu, Devanagari, Ethiopic, Khmer, Myanmar, CJK, and their full widths.
SENTENCE_ENDS = ".!?\u2026\u0589\u061f\u06d4\u0964\u0965\u1362\u1367\u17d4\u104a\u104b\u3002\uff01\uff0e\uff1f\uff61"
_AFTER_END = "\"')]}\u2019\u201d\u00bb\u203a\u300d\u300f\uff09*_"  # closing marks that may follow
_ODD = np.uint64(0x9E3779B97F4A7C15)


class _Fold(dict):
    """Punctuation and symbols to spaces; apostrophes inside a word stay out of sight. For str.translate."""

    def __missing__(self, code: int) -> int | None:
        category = unicodedata.category(chr(code))
        self[code] = None if code in (0x27, 0x2019, 0xAD) else 32 if category[0] in "PSZC" else code
        return self[code]


class _Hashes(dict):
    """64 bits of each word; emptied before it takes more than about 100 MB."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 500_000:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        self[word] = value
        return value


_fold, _hashes = _Fold(), _Hashes()


class Words:
    """A text cut into words. `raw` as between spaces, `folded` in lower case without marks, `hashes` of those."""

    def __init__(self, text: str):
        self.text = text
        unspaced = 0 if text.isascii() else sum(1 for _ in _UNSPACED.finditer(text))
        folded = text.lower().translate(_fold)
        self.is_spaced = unspaced * 2 <= len(folded) - folded.count(" ")
        if unspaced:
            folded = _UNSPACED.sub(r" \g<0> ", folded)
        self.raw = text.split()
        self.folded = folded.split()
        self.has_unspaced = unspaced > 0
        self.hashes = np.fromiter(map(_hashes.__getitem__, self.folded), np.uint64, len(self.folded))

    @cached_property
    def different(self) -> frozenset[str]:
        """The different words of `folded`."""
        return frozenset(self.folded)

    def ngrams(self, n: int) -> np.ndarray:
        """Return a hash of every run of n words, uint64 [max(0, words - n + 1)]. Wrapping arithmetic is meant."""
        count = self.hashes.size - n + 1
        if count <= 0:
            return np.empty(0, np.uint64)
        total = self.hashes[:count].copy()
        for i in range(1, n):
            total *= _ODD
            total += self.hashes[i : i + count]
        return scrambled(total)


def scrambled(values: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 values (in place), so that their low and high halves are both good hashes."""
    values ^= values >> np.uint64(31)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(29)
    return values


def ends_sentence(line: str) -> bool:
    """Whether a line ends as a sentence does, closing quotes and brackets aside."""
    line = line.rstrip().rstrip(_AFTER_END)
    return line[-1:] in SENTENCE_ENDS and line != ""


def count_sentences(text: str) -> int:
    """Return the number of runs of sentence ends in a text."""
    return len(_sentence_runs().findall(text))


@cache
def _sentence_runs() -> re.Pattern:
    return re.compile(f"[{re.escape(SENTENCE_ENDS)}]+")


@cache
def stop_words(language: str) -> frozenset[str] | None:
    """Return the commonest words of a language by its ISO 639-1 code, None where we have no list."""
    return _all_stop_words().get(language)


@cache
def _all_stop_words() -> dict[str, frozenset[str]]:
    lines = (files("gemworks.data") / "stop_words.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return {sys.intern(row[0]): frozenset(row[1:]) for row in rows}
