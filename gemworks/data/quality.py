"""Scores of a document's shape: Gopher, FineWeb and C4, in any script. Limits are in rules.py.

Rules that count words, or look for a language's common words, have no score where they cannot be right: in text
without spaces, and for languages that we have no list for. A missing score breaks no rule.
"""

import re

from gemworks.data.words import Words, count_sentences, ends_sentence, stop_words

# Bullets, dashes and squares that start list items; a hyphen or asterisk only with a space after it.
_BULLET = re.compile(
    "\\s*(?:[\u2022\u2023\u25aa\u25ab\u25b6\u25b8\u25cf\u25cb\u25e6\u2043\u2219\u00b7]|[-*\u2013\u2014] )"
)
_ELLIPSES = re.compile("\\.\\.\\.|\u2026")
_HAS_LETTER = re.compile(r"[^\W\d_]")
_SCRIPT_LINE = re.compile(
    r"\b(?:enable javascript|javascript (?:is|must|required|disabled)|cookie policy|privacy policy"
    r"|terms of (?:use|service)|use of cookies|uses cookies|accept (?:all )?cookies)\b",
    re.IGNORECASE,
)
_SHORT_LINE = 30


def quality_scores(words: Words, language: str) -> dict[str, float]:
    """Return the scores of the sets gopher, fineweb and c4 for a text in `language`."""
    text = words.text
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    num_lines = max(1, len(lines))
    num_words = len(words.raw) if words.is_spaced else len(words.folded) / 2
    count = max(1.0, num_words)
    scores = {
        "gopher.words": float(num_words),
        "gopher.hashes": text.count("#") / count,
        "gopher.ellipses": len(_ELLIPSES.findall(text)) / count,
        "gopher.bullet_lines": sum(1 for line in lines if _BULLET.match(line)) / num_lines,
        "gopher.ellipsis_lines": sum(1 for line in lines if line.rstrip().endswith(("...", "\u2026"))) / num_lines,
        "fineweb.ended_lines": sum(1 for line in lines if ends_sentence(line)) / num_lines,
        "fineweb.short_lines": sum(1 for line in lines if len(line) <= _SHORT_LINE) / num_lines,
        "c4.sentences": float(count_sentences(text)),
        "c4.braces": float(text.count("{")),
        "c4.lorem_ipsum": float(text.lower().count("lorem ipsum")),
        "c4.script_lines": sum(1 for line in lines if _SCRIPT_LINE.search(line)) / num_lines,
    }
    if words.is_spaced:
        with_letter = sum(1 for word in words.raw if word.isalpha() or _HAS_LETTER.search(word))
        scores |= {
            "gopher.word_length": sum(map(len, words.raw)) / count,
            "gopher.letters": with_letter / count,
            "fineweb.newlines": text.count("\n") / count,
        }
        common = stop_words(language)
        if common is not None:
            scores["gopher.stop_words"] = float(len(common & words.different))
    return scores
