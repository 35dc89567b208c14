"""The rules a document must keep, as one table of limits, and the verdict on its scores.

A score is a number that a rule's module computes; the limits here decide. Sources: the Gopher paper (Rae et al. 2021,
appendix A.1), C4 (Raffel et al. 2020, section 2.2) and FineWeb (Penedo et al. 2024, section 3.6) with the values that
the datatrove library uses. What Gemma 3 used is not disclosed. Limits marked "ours" are from no paper.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gemworks.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """low <= score <= high, or the document goes. `spaced`: only for scripts that put spaces between words."""

    name: str
    what: str
    low: float | None = None
    high: float | None = None
    spaced: bool = False

    def fails(self, score: float) -> bool:
        """Whether a score is outside the limits."""
        return (self.low is not None and score < self.low) or (self.high is not None and score > self.high)

    def limit(self, score: float) -> float:
        """The limit that a failing score is beyond."""
        return self.low if self.low is not None and score < self.low else self.high  # type: ignore[return-value]


RULES = {
    rule.name: rule
    for rule in (
        Rule("language.wanted", "confidence, 0 where the language was not asked for", low=1e-9),
        Rule("language.confidence", "confidence that the text is in one language (ours)", low=0.25),
        Rule("gopher.words", "words (two characters count as one in unspaced scripts)", low=50, high=100_000),
        Rule("gopher.word_length", "mean characters a word", low=3, high=10, spaced=True),
        Rule("gopher.hashes", "# a word", high=0.1),
        Rule("gopher.ellipses", "ellipses a word", high=0.1),
        Rule("gopher.bullet_lines", "share of lines that start with a bullet", high=0.9),
        Rule("gopher.ellipsis_lines", "share of lines that end with an ellipsis", high=0.3),
        Rule("gopher.letters", "share of words with a letter", low=0.8, spaced=True),
        Rule("gopher.stop_words", "different common words of the language", low=2, spaced=True),
        Rule("repetition.lines", "share of lines seen before", high=0.30),
        Rule("repetition.line_chars", "share of characters in lines seen before", high=0.20),
        Rule("repetition.paragraphs", "share of paragraphs seen before", high=0.30),
        Rule("repetition.paragraph_chars", "share of characters in paragraphs seen before", high=0.20),
        *(
            Rule(f"repetition.top_{n}", f"share of characters in the commonest run of {n} words", high=high)
            for n, high in ((2, 0.20), (3, 0.18), (4, 0.16))
        ),
        *(
            Rule(f"repetition.duplicate_{n}", f"share of characters in runs of {n} words seen before", high=high)
            for n, high in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
        ),
        Rule("fineweb.ended_lines", "share of lines that end as a sentence does", low=0.12),
        Rule("fineweb.short_lines", "share of lines of at most 30 characters", high=0.67),
        Rule("fineweb.line_chars", "share of characters in lines seen before", high=0.01),
        Rule("fineweb.newlines", "newlines a word", high=0.3, spaced=True),
        Rule("c4.sentences", "sentences", low=5),
        Rule("c4.braces", "curly braces", high=0),
        Rule("c4.lorem_ipsum", "times lorem ipsum", high=0),
        Rule("c4.script_lines", "share of lines that speak of JavaScript, cookies or terms of use (ours)", high=0.1),
        Rule("spam.score", "signs of advertising for 100 words (ours)", high=3.0),
        Rule("unsafe.score", "sexually explicit or dangerous terms for 100 words (ours)", high=2.0),
    )
}

SETS = tuple(dict.fromkeys(name.partition(".")[0] for name in RULES))
# FineWeb's and C4's rules were made for crawled pages: they drop books with refrains and all code. Not by default;
# docs/data.md has what each set costs on clean text.
DEFAULT_SETS = tuple(name for name in SETS if name not in ("fineweb", "c4"))

# Reasons that are not a score's limit.
EXACT, NEAR = "duplicate.exact", "duplicate.near"
CONTAMINATED, PERSONAL = "contamination", "personal"


@dataclass(frozen=True)
class Verdict:
    """Why a document goes: the rule, its score, and the limit that it is beyond."""

    reason: str
    score: float
    limit: float


def broken(scores: Mapping[str, float], sets: Iterable[str]) -> list[str]:
    """Return the names of all rules of `sets` that the scores break, in the order of the table."""
    wanted = frozenset(sets)
    return [
        name
        for name, rule in RULES.items()
        if name.partition(".")[0] in wanted and name in scores and rule.fails(scores[name])
    ]


def judge(scores: Mapping[str, float], sets: Iterable[str]) -> Verdict | None:
    """Return the first rule of `sets` that the scores break, in the order of the table; None to keep."""
    for name in broken(scores, sets):
        return Verdict(name, scores[name], RULES[name].limit(scores[name]))
    return None


def check_sets(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the order of the table. ConfigError for one that is not there."""
    given = tuple(names)
    if unknown := [name for name in given if name not in SETS]:
        raise ConfigError(f"rules must be some of {', '.join(SETS)}, got {', '.join(unknown)}.")
    return tuple(name for name in SETS if name in given)
