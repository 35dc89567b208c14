"""Each kind against figures computed here, on a double whose probabilities are a formula."""

import json
import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.errors import ConfigError, ContextLengthError
from gemworks.eval import evaluate, read_task
from gemworks.eval.kinds.memorize import edit_distance
from gemworks.eval.kinds.perplexity import windows


class Letters:
    """A tokenizer of one token a character."""

    bos_id = 2

    def encode(self, text):
        return [ord(letter) for letter in text]


def logprob(before, token, place):
    """What the double thinks of a token: it depends on the one before and on how much it sees."""
    return -(((before * 31 + token * 17) % 97) / 20 + 1 / place + 0.01)


class Formula:
    """Scores by `logprob`; answers texts with `answer(prompt)`."""

    def __init__(self, *, context=64, is_chat=True, answer=lambda prompt: ""):
        self.tokenizer, self.context, self.is_chat, self.answer = Letters(), context, is_chat, answer
        self.prompts, self.ahead, self.most_ahead = [], 0, 0

    def prepare(self, prompt, *, kind="generate", score_from=1, **told):
        length = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], int) else 0
        if length > self.context:
            raise ContextLengthError(f"{length} tokens; the context holds {self.context}.")
        self.prompts.append(prompt)
        return SimpleNamespace(prompt=prompt, kind=kind, score_from=score_from, told=told)

    def submit(self, prepared):
        self.ahead += 1
        self.most_ahead = max(self.ahead, self.most_ahead)
        return SimpleNamespace(finish=lambda: self._finish(prepared), last=lambda: self._last(prepared))

    def _finish(self, prepared):
        self.ahead -= 1
        ids = prepared.prompt
        scores = [None] * len(ids)
        for i in range(prepared.score_from, len(ids)):
            scores[i] = SimpleNamespace(token_id=ids[i], logprob=logprob(ids[i - 1], ids[i], i))
        return SimpleNamespace(scores=scores)

    def _last(self, prepared):
        self.ahead -= 1
        made = self.answer(prepared.prompt)
        ids = made if isinstance(made, list) else Letters().encode(made)
        return SimpleNamespace(text=made if isinstance(made, str) else "", token_ids=ids[: prepared.told["max_tokens"]])


@pytest.fixture
def task(tmp_path):
    """task('kind = "choice"', line, line) -> the task of these data lines, as data.jsonl."""

    def read(settings, *lines):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "task.toml").write_text(settings)
        return read_task(tmp_path / "task.toml")

    return read


def figures(result):
    return {figure.name: figure for figure in result.figures}


CHOICE = 'kind = "choice"\ndata = "data.jsonl"\n'


def test_choice_sums_the_log_probabilities_of_each_continuation(task):
    draw = random.Random(0)
    questions = [
        {
            "context": "".join(draw.choices("abc de", k=8)),
            "choices": [x + "".join(draw.choices("yz\u00e9", k=draw.randint(0, 5))) for x in "uvw"],
            "answer": draw.randrange(3),
            "category": "even" if i % 2 == 0 else "odd",
        }
        for i in range(40)
    ]
    result = evaluate(Formula(), task(CHOICE, *questions), model="x")
    right = {"right": 0, "right, by characters": 0, "right, by bytes": 0}
    for question, record in zip(questions, result.records, strict=True):
        sums = []
        for choice in question["choices"]:
            ids = [2, *map(ord, question["context"] + choice)]
            first = len(ids) - len(choice)
            sums.append(sum(logprob(ids[i - 1], ids[i], i) for i in range(first, len(ids))))
        assert record["logprobs"] == pytest.approx(sums)
        for name, size in {"right": lambda c: 1, "right, by characters": len, "right, by bytes": _bytes}.items():
            scaled = [total / size(choice) for total, choice in zip(sums, question["choices"], strict=True)]
            right[name] += max(range(3), key=scaled.__getitem__) == question["answer"]
    assert {name: figure.value for name, figure in figures(result).items()} == {
        name: count / 40 for name, count in right.items()
    }
    assert len(set(right.values())) > 1, "the three ways differ on these questions"
    assert [result.groups[name][0].n for name in ("even", "odd")] == [20, 20]


def _bytes(text):
    return len(text.encode())


def test_a_tie_is_wrong_and_a_template_makes_the_context(task):
    line = {"question": "Why?", "choices": ["a", "a"], "answer": 0}
    llm = Formula()
    result = evaluate(llm, task(CHOICE + 'template = "Q: {question} A:"\ndelimiter = " "\n', line), model="x")
    assert figures(result)["right"].value == 0.0
    assert "".join(map(chr, llm.prompts[0][1:])) == "Q: Why? A: a"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"context": "x", "choices": ["a"], "answer": 0}, "data.jsonl:1: choices must be two texts or more"),
        ({"context": "x", "choices": ["a", 1], "answer": 0}, "data.jsonl:1: choices must be a list of texts"),
        ({"context": "x", "choices": ["a", "b"], "answer": 2}, "answer must be the number of a choice, 0 to 1, got 2"),
        ({"context": "x", "choices": ["a", "b"], "answer": True}, "answer must be a whole number, got true"),
        ({"choices": ["a", "b"], "answer": 0}, "must have context, a text"),
        ({"context": "x", "choices": ["a", "b"], "answer": 0, "anser": 1}, "has no anser; known: choices, answer"),
    ],
)
def test_a_wrong_question_is_named(task, line, message):
    with pytest.raises(ConfigError, match=message):
        task(CHOICE, line)


@given(st.integers(2, 400), st.integers(2, 64), st.data())
def test_windows_score_every_token_once_with_as_much_before_it_as_there_is_room_for(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    scored = []
    for start, first, end in windows(length, window, stride):
        assert end - start <= window and start < first < end <= length
        assert start == max(0, end - window)
        scored += range(first, end)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("settings", ["", "window = 20\nstride = 5\n", "window = 9\nstride = 8\n"])
def test_perplexity_and_bits_per_byte(task, settings):
    texts = [{"text": "short \u00e9"}, {"text": "a longer text, " * 9}, {"text": "x"}]
    result = evaluate(
        Formula(context=40), task(f'kind = "perplexity"\ndata = "data.jsonl"\n{settings}', *texts), model="x"
    )
    window, stride = (20, 5) if "20" in settings else (9, 8) if "9" in settings else (40, 20)
    nats = tokens = 0
    for text in texts:
        ids, first = [2, *map(ord, text["text"])], 1
        while first < len(ids):  # windows, written once more
            end = min(len(ids), window) if first == 1 else min(len(ids), first + stride)
            start = max(0, end - window)
            nats -= sum(logprob(ids[i - 1], ids[i], i - start) for i in range(first, end))
            tokens += end - first
            first = end
    found = figures(result)
    assert tokens == sum(len(text["text"]) for text in texts)
    assert found["perplexity"].value == pytest.approx(math.exp(nats / tokens))
    in_bytes = sum(len(text["text"].encode()) for text in texts)
    assert found["bits per byte"].value == pytest.approx(nats / math.log(2) / in_bytes)
    assert found["bits per byte"].n == 3 and found["bits per byte"].low < found["bits per byte"].value
    assert found["perplexity"].is_better == "lower"


MATCH = 'kind = "match"\ndata = "data.jsonl"\ntemplate = "{question}"\n'


@pytest.mark.parametrize(
    ("settings", "text", "expect", "is_right"),
    [
        ("", " Paris\n", ["paris"], True),
        ("", "It is Paris", ["paris"], False),
        ("ignore_case = false", "paris", ["Paris"], False),
        ('mode = "contains"', "It is Paris.", ["Rome", "paris"], True),
        ('mode = "regex"', "42 km", [r"\d+ ?km"], True),
        ('mode = "regex"', "about 42 km", [r"\d+ ?km"], False),
        (r"extract = '#### (\S+)'", "1 + 1\n#### 3\nno:\n#### 2", ["2"], True),
        (r"extract = '#### (\S+)'", "I do not know", ["2"], False),
    ],
)
def test_match(task, settings, text, expect, is_right):
    result = evaluate(
        Formula(answer=lambda prompt: text), task(MATCH + settings, {"question": "?", "expect": expect}), model="x"
    )
    assert figures(result)["right"].value == float(is_right)
    if "extract" in settings:
        assert figures(result)["extracted"].value == float("####" in text)


def test_match_asks_as_the_model_is_or_as_the_task_says(task):
    line = {"question": "Why?", "expect": ["x"]}
    asked = []
    for llm, settings in [
        (Formula(), 'system = "Be brief."'),
        (Formula(is_chat=False), 'system = "Be brief."'),
        (Formula(), "chat = false"),
    ]:
        evaluate(llm, task(MATCH + settings, line), model="x")
        asked += llm.prompts
    assert asked == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "Be brief.\n\nWhy?",
        "Why?",
    ]


@pytest.mark.parametrize(
    ("settings", "line", "message"),
    [
        ('mode = "near"', {}, "mode must be one of exact, contains, regex, got near"),
        ('extract = "("', {}, "extract must be a regular expression"),
        ('extract = "x"', {}, "extract must have a group"),
        ("max_tokens = 0", {}, "max_tokens must be 1 or more, got 0"),
        ("tokens = 1", {}, "task.toml: has no tokens; known: "),
        ("", {"expect": []}, "data.jsonl:1: expect must be one text or more"),
        ('mode = "regex"', {"expect": ["("]}, "data.jsonl:1: expect must be a regular expression"),
        ("", {"question": 1, "questio": 2, "answer": ["x"]}, "data.jsonl:1: must have expect, a list"),
    ],
)
def test_a_wrong_match_task_is_named(task, settings, line, message):
    with pytest.raises(ConfigError, match=message):
        task(MATCH + settings, {"question": "?", "expect": ["x"]} | line if line.get("answer") is None else line)


def test_a_template_that_cannot_be_filled_names_the_line(task):
    with pytest.raises(ConfigError, match=r"data.jsonl:1: the template .* cannot be filled: KeyError\('question'\)"):
        task(MATCH, {"q": "?", "expect": ["x"]})


def reads(prompt):
    """A reader that finds the number, but only in the first half of the text."""
    text = prompt[-1]["content"] if isinstance(prompt, list) else prompt
    at = text.find("The access number of")
    return text[at:].split(" is ")[1][:7] if at < len(text) / 2 else "I do not know"


NEEDLE = 'kind = "needle"\nlengths = [400, 800, 4000]\ndepths = [0, 0.2, 1]\nrepeats = 3\n'


def test_a_needle_is_found_where_the_model_looks(task):
    llm = Formula(context=1000, answer=reads)
    result = evaluate(llm, task(NEEDLE), model="x")
    assert result.figures[0].value == pytest.approx(2 / 3) and result.figures[0].n == 18
    assert len(result.skipped) == 9 and all(name.startswith("4000") for name in result.skipped)
    by_depth = {figure.name: figure.value for figure in result.groups["800 tokens"]}
    assert by_depth == {"found": pytest.approx(2 / 3), "at 0 %": 1.0, "at 20 %": 1.0, "at 100 %": 0.0}
    for prompt, length in zip(llm.prompts, [400] * 9 + [800] * 9, strict=True):
        assert length - 150 <= len(prompt[-1]["content"]) <= length
    assert len({json.dumps(prompt) for prompt in llm.prompts}) == 18
    again = Formula(context=1000, answer=reads)
    evaluate(again, task(NEEDLE), model="x")
    assert again.prompts == llm.prompts, "the same task asks the same"


def test_a_needle_in_a_text_of_ones_own(task, tmp_path):
    (tmp_path / "book.txt").write_text("call me what you like " * 60)
    llm = Formula(context=1000, answer=lambda prompt: "0")
    result = evaluate(llm, task(NEEDLE + 'data = "book.txt"\n'), model="x")
    assert result.figures[0].value == 0.0
    assert "call me what you" in llm.prompts[0][-1]["content"]


MEMORIZE = 'kind = "memorize"\ndata = "data.jsonl"\nprefix = 10\nsuffix = 20\nsamples = 50\n'


def test_memorized_texts_are_told_exactly_and_nearly(task):
    """A model that knows one text by heart, a second with two letters wrong, and the third not."""
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefghij" * (i + 1), k=60)) for i in range(3)]
    near = list(texts[1])
    known = [texts[0], texts[1], "?" * 60]

    def recite(prompt):
        prefix = "".join(map(chr, prompt[1:]))
        for i, text in enumerate(texts):
            if (at := text.find(prefix)) >= 0:
                made = list(known[i][at + 10 : at + 30])
                if i == 1:
                    made[3:5] = ["?", "?"]
                return [ord(letter) for letter in made]
        raise AssertionError(prefix)

    result = evaluate(Formula(answer=recite), task(MEMORIZE, *({"text": text} for text in texts)), model="x")
    place = [int(record["id"].split("-")[0]) for record in result.records]
    found = figures(result)
    assert len(place) == 50 and len(near) == 60
    assert found["exact"].value == place.count(0) / 50
    assert found["approximate"].value == (place.count(0) + place.count(1)) / 50
    assert 0 < place.count(0) < 50 and found["exact"].is_better == "lower"


def test_a_text_too_short_to_ask_about(task):
    with pytest.raises(ConfigError, match="no text has 30 tokens, which prefix and suffix need"):
        evaluate(Formula(), task(MEMORIZE, {"text": "short"}), model="x")


def slow_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return slow_distance(a[1:], b[1:])
    return 1 + min(slow_distance(a[1:], b), slow_distance(a, b[1:]), slow_distance(a[1:], b[1:]))


letters = st.lists(st.integers(0, 2), max_size=6)


@given(letters, letters)
def test_edit_distance_is_its_definition(a, b):
    assert edit_distance(a, b) == slow_distance(a, b)
