"""`gemworks eval`: what it prints, keeps and refuses."""

import json

import pytest
from scripted_llm import ScriptedLLM

from gemworks.cli import eval as eval_command
from gemworks.cli.eval import _asked, _row, _slug
from gemworks.errors import ConfigError
from gemworks.eval import share

WEATHER = {"name": "weather", "parameters": {"properties": {"city": {}}, "required": ["city"]}}
ROME = [{"name": "weather", "arguments": {"city": "Rome"}}]
CASES = [
    {"tool": WEATHER},
    {"id": "a", "category": "one", "tools": ["weather"], "prompt": "Rome?", "calls": ROME},
    {"id": "b", "category": "none", "tools": ["weather"], "prompt": "Hello", "calls": []},
]


def calls_rome(messages):
    return [("weather", {"city": "Rome"})]


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """Two models that always ask for the weather in Rome, and a case file."""
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CASES))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    loaded = []

    def load(model, **options):
        loaded.append((model, ScriptedLLM(calls_rome), options))
        return loaded[-1][1]

    monkeypatch.setattr(eval_command, "_load", load)
    monkeypatch.chdir(tmp_path)
    return loaded


def test_tools_prints_a_table_with_n_and_interval(run_command, setting):
    code, out, err = run_command("eval", "tools", "./one", "cases.jsonl")
    assert code == 0 and err == ""
    rows = [line.split() for line in out.splitlines()]
    assert ["right", "50.0", "%", "9.5", "to", "90.5", "2"] in rows
    assert ["no", "call", "where", "none", "fits", "0.0", "%", "0.0", "to", "79.3", "1"] in rows
    assert ["one", "100.0", "%", "20.7", "to", "100.0", "1"] in rows
    assert ["several", "calls", "none", "none", "0"] in rows
    assert setting[0][1].closed == 1


def test_several_models_are_compared(run_command, setting, tmp_path):
    arguments = ("./one", "./two", "--tasks", "cases.jsonl", "--json", "--report", "r.html", "--quant", "int8")
    code, out, err = run_command("eval", *arguments)
    assert code == 0 and err == "Wrote r.html.\n"
    told = json.loads(out)["results"]
    assert [result["model"] for result in told] == ["./one", "./two"]
    assert told[0]["figures"][0]["value"] == 0.5 and told[0]["about"]["quant"] == "int8"
    assert (tmp_path / "r.html").read_text().count("50.0 % (9.5 to 90.5, n = 2)") == 2
    assert [options["quant"] for _, _, options in setting] == ["int8", "int8"]


def test_a_second_run_asks_nothing_again(run_command, setting, tmp_path):
    for _ in range(2):
        code, out, _ = run_command("eval", "tools", "./one", "cases.jsonl", "--out", "kept")
        assert code == 0 and "50.0 %" in out
    assert [len(llm.asked) for _, llm, _ in setting] == [2, 0]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["one-cases.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./one"], "eval needs --tasks"),
        (["tools"], "eval tools needs a model"),
        (["tools", "./one", "--tasks", "needle"], "give one of them"),
        (["./one", "--tasks", ","], "--tasks must name at least one task"),
        (["./one", "--tasks", "needle,needle"], "two tasks are called needle"),
        (["./one", "--tasks", "needle", "--execute", "x.py"], "none of the tasks has some"),
        (["./none", "--tasks", "needle"], "none"),
        (["tools", "./one", "wrong.jsonl"], "wrong.jsonl:1: must be one JSON object"),
    ],
)
def test_what_is_wrong_is_told_before_loading(run_command, setting, tmp_path, arguments, message):
    (tmp_path / "wrong.jsonl").write_text("{\n")
    code, out, err = run_command("eval", *arguments)
    assert (code, out, setting) == (2, "", [])
    assert err.startswith("Error: ") and message in err


def test_words_are_models_unless_tools_is_the_first():
    assert _asked(["a", "b"], "x, y") == (["a", "b"], ["x", "y"])
    assert _asked(["tools", "a"], None) == (["a"], ["tools"])
    assert _asked(["tools", "a", "b", "c.jsonl"], None) == (["a", "b"], ["c.jsonl"])
    with pytest.raises(ConfigError):
        _asked(["tools", "a", "b.jsonl", "c.jsonl"], None)


def test_names_of_files_are_plain():
    assert _slug("google/gemma-3-1b-it") == "google-gemma-3-1b-it"
    assert _slug("../x") == "x" and _slug("///") == "model"
    assert _row(share("x", 0, 0), "") == ("x", "none", "none", "0")
