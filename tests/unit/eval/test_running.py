"""A run is resumed where it was, asks ahead, skips what is too long, and its page and tables tell what was measured."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from gemworks.errors import ConfigError, ContextLengthError, RequestError, StorageError
from gemworks.eval import Results, evaluate, find_task, share, write_html
from gemworks.eval.running import TaskResult


class Count:
    """A task of whole numbers: the model doubles them, and is right about even ones."""

    name, kind, digest = "count", "count", "d" * 64

    def __init__(self, n=40):
        self.n = n

    def items(self, llm):
        return [{"id": str(i), "value": i} for i in range(self.n)]

    def ask(self, llm, item):
        return llm.ask(item["value"])

    def figures(self, records):
        return [share("even", sum(record["made"] % 2 == 0 for record in records), len(records))], {}


class Doubler:
    def __init__(self, *, fail_at=None, too_long=()):
        self.begun, self.read, self.most, self.fail_at, self.too_long = [], [], 0, fail_at, too_long

    def ask(self, value):
        if value in self.too_long:
            raise ContextLengthError("too long")
        self.begun.append(value)
        self.most = max(self.most, len(self.begun) - len(self.read))

        def finish():
            if value == self.fail_at:
                raise RequestError("the power went")
            self.read.append(value)
            return {"made": 2 * value}

        return finish


def test_items_are_asked_ahead_and_read_in_order():
    llm, seen = Doubler(), []
    result = evaluate(llm, Count(), model="x", progress=lambda done, total: seen.append((done, total)))
    assert llm.read == list(range(40)) and 8 <= llm.most <= 17
    assert seen == [(i, 40) for i in range(41)]
    assert result.figures[0].n == 40 and [record["made"] for record in result.records] == [2 * i for i in range(40)]


def test_a_run_that_broke_off_goes_on(tmp_path):
    file = tmp_path / "deep" / "out.jsonl"
    with pytest.raises(RequestError):
        evaluate(Doubler(fail_at=25), Count(), model="x", out=file)
    with open(file, "a") as half:
        half.write('{"id": "25", "ma')
    again = Doubler()
    result = evaluate(again, Count(), model="x", out=file)
    assert again.read == list(range(25, 40)) and result.figures[0].n == 40
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines[1:]] == [str(i) for i in range(40)]
    done = Doubler()
    assert evaluate(done, Count(), model="x", out=file).figures == result.figures and done.begun == []


def test_answers_of_another_model_or_task_are_not_taken(tmp_path):
    file = tmp_path / "out.jsonl"
    evaluate(Doubler(), Count(), model="x", out=file)
    with pytest.raises(ConfigError, match=r"holds answers to something else: model is x, not y\."):
        evaluate(Doubler(), Count(), model="y", out=file)
    with pytest.raises(ConfigError, match="quant is None, not int8"):
        evaluate(Doubler(), Count(), model="x", out=file, options={"quant": "int8"})
    file.write_text("not ours\n")
    with pytest.raises(ConfigError, match="is no file of results"):
        evaluate(Doubler(), Count(), model="x", out=file)
    with pytest.raises(StorageError, match="results cannot be kept there"):
        Results(tmp_path, {})


def test_what_is_too_long_is_skipped_and_counted():
    result = evaluate(Doubler(too_long={3, 5}), Count(10), model="x")
    assert result.skipped == ["3", "5"] and result.figures[0].n == 8


def test_a_limit_takes_the_first():
    llm = Doubler()
    assert evaluate(llm, Count(), model="x", limit=3).figures[0].n == 3
    assert llm.begun == [0, 1, 2]


class Text(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.words, self.links = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "line", "circle"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in ("line", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_compares_models_and_holds_nothing_from_outside(tmp_path):
    def result(model, right, skipped=()):
        figures = [share("right", right, 80), share("<b>odd", 0, 0)]
        groups = {"a & b": [share("right", 1, 2)]}
        told = TaskResult(task="t<1>", kind="match", model=model, figures=figures, groups=groups, skipped=list(skipped))
        return told.as_dict()

    write_html(tmp_path / "report.html", [result("one", 70), result("two", 10, ["x"])])
    page = (tmp_path / "report.html").read_text()
    text = Text(page)
    words = " ".join(text.words)
    assert text.links == [] and "script" not in page
    assert "t<1>" in words and "a & b" in words and "<b>odd" in words
    assert "87.5 % (78.5 to 93.1, n = 80)" in words and "12.5 % (6.9 to 21.5, n = 80)" in words
    assert "two: 1 items were longer than its context." in words
    assert page.count("<circle") == 4


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("nothing", "a task is one of needle, tools, a .toml file or a .jsonl file of calls, got nothing."),
        ("none.toml", "none.toml: the task cannot be read"),
    ],
)
def test_a_task_that_is_not_there(told, message):
    with pytest.raises((ConfigError, StorageError), match=message):
        find_task(told)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind =", "a task must be TOML in UTF-8"),
        ('name = "x"', "must have kind, a text"),
        ('kind = "guess"', "kind must be one of calls, perplexity, choice, match, needle, memorize, got guess"),
        ('kind = "needle"\nlength = 3', "has no length; known: name, kind, description, lengths"),
        ('kind = "needle"\nlengths = [1]', "lengths must be numbers between 128 and"),
        ('kind = "perplexity"\ndata = "x"\nwindow = 1', "window must be 2 tokens or more"),
    ],
)
def test_a_wrong_task_file_is_named(tmp_path, text, message):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ConfigError, match="t.toml: .*" + message):
        find_task(str(tmp_path / "t.toml"))


def test_figures_come_from_the_whole_of_a_run_not_only_from_what_was_new(tmp_path):
    """Half in one run, half in the next: the same result."""
    file = tmp_path / "out.jsonl"
    evaluate(Doubler(), Count(), model="x", out=file, limit=20)
    parts = evaluate(Doubler(), Count(), model="x", out=file)
    assert parts.figures == evaluate(Doubler(), Count(), model="x").figures
    assert SimpleNamespace(**parts.figures[0].as_dict()).n == 40
