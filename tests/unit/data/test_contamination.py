import json

import pytest

from gemworks.data.contamination import build_index, find_contamination, mask_contamination
from gemworks.data.words import Words
from gemworks.errors import ConfigError

QUESTION = "Which of the seven harbor masters kept the copper key that opened every gate of the old town?"
ANSWER = "It was the third one, who hid the key below the floor of his boat for eleven years."
CHINESE = "".join(chr(0x5C71 + 37 * i) for i in range(28))  # characters of no phrase


@pytest.fixture
def index(write):
    return build_index([write("quiz.jsonl", [{"question": QUESTION, "answers": [ANSWER, "no"]}, {"q": CHINESE}])])


def masked(text, index):
    words = Words(text)
    found = find_contamination(words, index)
    return (text, None) if found is None else (mask_contamination(text, words, found), found)


def test_a_found_run_is_cut_out_and_the_rest_stays(index):
    before, after = "He wrote to her, in winter:\n\n \u201c", "\u201d And so it ended."
    text, found = masked(before + QUESTION.upper() + after, index)
    assert text == "He wrote to her, in winter:\n\n [...] And so it ended."
    assert found.names == ["quiz.jsonl"]
    assert found.share == pytest.approx(18 / (6 + 18 + 4), abs=0.01)


def test_twelve_words_are_enough_and_eleven_are_not(index):
    words = QUESTION.split()
    assert masked("a b " + " ".join(words[2:13]) + " c d", index)[1] is None
    assert masked("a b " + " ".join(words[2:14]) + " c d", index)[0] == "a b [...] c d"


def test_an_answer_behind_its_question_is_found_across_the_border(index):
    run = " ".join([*QUESTION.split()[-6:], *ANSWER.split()[:6]])
    assert masked(f"x {run} y", index)[0] == "x [...] y"


def test_unspaced_scripts_are_searched_by_characters(index):
    text, _ = masked(f"\u6211\u8bf4\u3002{CHINESE}\u3002\u597d", index)
    assert CHINESE not in text
    assert text.startswith("\u6211\u8bf4")
    assert text.endswith("\u597d")
    assert masked(CHINESE[:20], index)[1] is None


def test_short_items_are_found_whole_or_counted(write):
    index = build_index([write("a.jsonl", [{"q": "one two three four five six seven eight"}, {"q": "one two"}])])
    assert index.too_short == 1
    assert masked("zero one two three four five six seven eight nine", index)[0] == "zero [...] nine"


def test_evaluation_files_must_be_whole_and_hold_something(write, tmp_path):
    with pytest.raises(ConfigError, match="must hold texts of at least 8 words, got none"):
        build_index([write("a.jsonl", [{"q": "too short"}])])
    (tmp_path / "b.jsonl").write_text('{"q": "a\n')
    with pytest.raises(ConfigError, match=r"b\.jsonl, line 1: not JSON"):
        build_index([tmp_path / "b.jsonl"])
    (tmp_path / "c.txt").write_text(f"{QUESTION}\n\n{ANSWER}\n")
    assert build_index([tmp_path / "c.txt"]).num_runs == 7 + 7
    assert json.dumps(build_index([tmp_path / "c.txt"]).names) == '["c.txt"]'
