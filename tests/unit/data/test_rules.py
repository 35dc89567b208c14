"""Scores against slow counts by the definition, and limits on both sides."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.data.content import content_scores
from gemworks.data.quality import quality_scores
from gemworks.data.repetition import repetition_scores
from gemworks.data.rules import DEFAULT_SETS, RULES, SETS, broken, check_sets, judge
from gemworks.data.words import Words, count_sentences, ends_sentence, stop_words
from gemworks.errors import ConfigError

# The same sentence ("All human beings are born free and equal in dignity and rights.") in scripts of all kinds.
HUMAN = json.loads(Path(__file__).with_name("human.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", HUMAN)
def test_good_text_in_any_script_breaks_no_shape_rule(language):
    """Rules of words and stop words do not apply where words are not spaced; Indic vowel signs do not cut words."""
    lines = [HUMAN[language] + "\u0020".join(["", str(i)]) + HUMAN[language][-1] for i in range(20)]
    scores = quality_scores(Words("\n".join(lines)), language)
    names = ("gopher.words", "gopher.word_length", "gopher.letters", "gopher.stop_words", "fineweb.ended_lines")
    found = {name: scores[name] for name in names if name in scores and RULES[name].fails(scores[name])}
    assert found in ({}, {"fineweb.ended_lines": 0.0})  # Thai has no full stop
    assert ("gopher.word_length" in scores) == (language in ("hi", "ar"))


def test_words_are_cut_by_category_not_by_ascii():
    assert Words("Don\u2019t \u00abstop\u00bb\u2014now, \u4eba\u4eba!").folded == [
        "dont",
        "stop",
        "now",
        "\u4eba",
        "\u4eba",
    ]
    assert Words(HUMAN["hi"]).folded[1] == "\u092e\u0928\u0941\u0937\u094d\u092f\u094b\u0902"
    assert Words("a b c").ngrams(4).size == 0
    assert len(set(Words("a b c a b").ngrams(2).tolist())) == 3


@pytest.mark.parametrize("end", [".", "!", "?\u201d", "\u3002", "\u0964", "\u061f", "\u2026", ".)"])
def test_sentences_end_in_every_script(end):
    assert ends_sentence(f"abc{end}  ")
    assert not ends_sentence("abc,")
    assert not ends_sentence("")
    assert count_sentences(f"a{end} b{end} c") == 2


def test_stop_words_are_known_for_many_languages_and_none_for_the_rest():
    assert stop_words("en") == {"the", "be", "to", "of", "and", "that", "have", "with"}  # Gopher's own
    assert len(stop_words("ru")) >= 8
    assert stop_words("xx") is None
    assert "gopher.stop_words" not in quality_scores(Words("a b c"), "xx")


def slow_duplicates(words, n):
    """Characters in an n-gram that occurred before, position by position."""
    seen, covered = set(), [False] * len(words)
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered[i : i + n] = [True] * n
        seen.add(gram)
    return sum(len(w) for w, c in zip(words, covered, strict=True) if c) / max(1, sum(map(len, words)))


def slow_top(words, n):
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(grams.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(sum(map(len, gram)) for gram, count in grams.items() if count == most)
    return min(1.0, most * longest / sum(map(len, words)))


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd", "e"]), min_size=1, max_size=80))
def test_repetition_is_that_of_a_slow_count(words):
    scores = repetition_scores(Words(" ".join(words)))
    for n in range(5, 11):
        assert scores[f"repetition.duplicate_{n}"] == pytest.approx(slow_duplicates(words, n))
    for n in (2, 3, 4):
        assert scores[f"repetition.top_{n}"] == pytest.approx(slow_top(words, n))


def test_repeated_lines_count_after_their_first():
    scores = repetition_scores(Words("one line\nanother\none line\n\none line\n\nanother"))
    assert scores["repetition.lines"] == pytest.approx(3 / 5)
    assert scores["repetition.line_chars"] == pytest.approx((8 + 8 + 7) / (3 * 8 + 2 * 7))
    assert scores["repetition.paragraphs"] == 0.0


def test_gopher_scores_are_counts_by_hand():
    text = "# Title one ...\n- first item here\n- second item\nIt is the end of that.\n\u2026 12 34"
    scores = quality_scores(Words(text), "en")
    words = text.split()
    assert scores["gopher.words"] == len(words)
    assert scores["gopher.word_length"] == pytest.approx(sum(map(len, words)) / len(words))
    assert scores["gopher.hashes"] == pytest.approx(1 / len(words))
    assert scores["gopher.ellipses"] == pytest.approx(2 / len(words))
    assert scores["gopher.bullet_lines"] == pytest.approx(2 / 5)
    assert scores["gopher.ellipsis_lines"] == pytest.approx(1 / 5)
    assert scores["gopher.letters"] == pytest.approx((len(words) - 7) / len(words))  # # ... - - \u2026 12 34
    assert scores["gopher.stop_words"] == 3  # the, of, that
    assert scores["c4.braces"] == 0


def test_every_limit_lets_its_own_value_pass():
    for name, rule in RULES.items():
        for limit, outside in ((rule.low, -1e-6), (rule.high, 1e-6)):
            if limit is not None:
                assert judge({name: limit}, SETS) is None
                verdict = judge({name: limit + outside}, SETS)
                assert (verdict.reason, verdict.limit) == (name, limit)


def test_the_published_limits_are_those_of_the_papers():
    """Rae et al. 2021 A.1, Penedo et al. 2024: written down a second time, by hand."""
    assert [RULES[f"repetition.top_{n}"].high for n in (2, 3, 4)] == [0.20, 0.18, 0.16]
    assert [RULES[f"repetition.duplicate_{n}"].high for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert (RULES["gopher.words"].low, RULES["gopher.words"].high) == (50, 100_000)
    assert (RULES["gopher.word_length"].low, RULES["gopher.word_length"].high) == (3, 10)
    assert (RULES["gopher.letters"].low, RULES["gopher.bullet_lines"].high) == (0.8, 0.9)
    assert (RULES["fineweb.ended_lines"].low, RULES["fineweb.short_lines"].high) == (0.12, 0.67)
    assert (RULES["fineweb.line_chars"].high, RULES["fineweb.newlines"].high) == (0.01, 0.3)


def test_only_the_sets_asked_for_judge_and_the_first_is_the_reason():
    scores = {"c4.braces": 1.0, "gopher.words": 3.0, "spam.score": 9.0}
    assert judge(scores, DEFAULT_SETS).reason == "gopher.words"
    assert judge(scores, ("c4",)).reason == "c4.braces"
    assert broken(scores, SETS) == ["gopher.words", "c4.braces", "spam.score"]
    with pytest.raises(ConfigError, match=r"rules must be some of language, gopher, .*, got gofer"):
        check_sets(["gopher", "gofer"])


def test_one_phrase_in_a_long_text_is_no_advertising():
    plain = "The shop by the river was closed that day and they walked on. " * 20
    assert content_scores(Words(plain + "Click here to read on."))["spam.score"] < 1
    loud = "Buy now! Click here! Free shipping! http://a.example/b Order today! " + plain[:200]
    assert RULES["spam.score"].fails(content_scores(Words(loud))["spam.score"])
    assert content_scores(Words("a buynow b"))["spam.score"] == 0.0
    own = content_scores(Words("gruel " * 5 + plain), ("gruel",))["unsafe.score"]
    assert own == pytest.approx(5 / (len(Words("gruel " * 5 + plain).folded) / 100))


def test_hashes_do_not_depend_on_the_process():
    """Signatures of several processes are compared with each other."""
    known = [int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little") for word in (b"the", b"boat")]
    assert Words("the boat").hashes.tolist() == known
    assert np.array_equal(Words("the boat").hashes, Words("THE  boat!").hashes)
