"""Scoring of function calls, the set that ships, and case files that are wrong."""

import itertools
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_llm import ScriptedLLM

from gemworks.errors import ConfigError, StorageError
from gemworks.eval import evaluate, find_task
from gemworks.eval.kinds.calls import Calls, Wanted, are_met, is_same, read_cases
from gemworks.eval.task import SETS
from gemworks.tools import Toolbox

TOOL = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string"}, "note": {"type": "string"}},
        "required": ["city"],
    },
}
CALL = {
    "name": "weather",
    "arguments": {"city": "Rome"},
    "accept": {"city": ["Roma"], "unit": ["c"]},
    "any": ["note"],
    "optional": ["note"],
}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def case(name="a", calls=(CALL,), **more):
    return {"id": name, "tools": ["weather"], "prompt": "Rome?", "calls": list(calls)} | more


@pytest.fixture
def cases(tmp_path):
    return lambda *lines: write(tmp_path / "cases.jsonl", {"tool": TOOL}, *lines)


@pytest.mark.parametrize(
    ("arguments", "is_right"),
    [
        ({"city": "Rome"}, True),
        ({"city": "  ROME "}, True),
        ({"city": "Roma", "unit": "c", "note": "anything"}, True),
        ({"city": "Rome", "unit": "f"}, False),
        ({"city": "Milan"}, False),
        ({}, False),
        ({"city": "Rome", "day": "today"}, False),
        ({"city": ["Rome"]}, False),
    ],
)
def test_arguments_have_alternatives_and_may_be_free(cases, arguments, is_right):
    [wanted] = read_cases(cases(case()))[0]["wanted"]
    assert wanted.is_met_by("weather", arguments) is is_right
    assert not wanted.is_met_by("wether", arguments)


@pytest.mark.parametrize(
    ("made", "wanted", "same"),
    [
        (5, 5.0, True),
        (0.1 + 0.2, 0.3, True),
        (1, True, False),
        (True, 1, False),
        ("5", 5, False),
        ("A  b", "a B", True),
        ([1, "x"], [1.0, "X"], True),
        ([1, 2], [2, 1], False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        (None, None, True),
        (None, 0, False),
    ],
)
def test_values_that_mean_the_same(made, wanted, same):
    assert is_same(made, wanted) is same


values = st.sampled_from(["x", "y", "z"])
wants = st.lists(st.sets(values, min_size=1), max_size=4)


@given(wants, st.lists(values, max_size=4))
def test_several_calls_match_in_any_order_where_some_order_does(wanted, made):
    """Against every order, one by one."""
    calls = [Wanted("f", {}, {"v": sorted(one)}, frozenset()) for one in wanted]
    expected = len(wanted) == len(made) and any(
        all(value in one for value, one in zip(order, wanted, strict=True)) for order in itertools.permutations(made)
    )
    assert are_met(calls, [("f", {"v": value}) for value in made]) is expected


def perfect(messages_to_calls):
    def turn(messages):
        return [(one.name, one.arguments) for one in messages_to_calls[json.dumps(messages)]]

    return ScriptedLLM(turn)


def test_the_set_that_ships_is_varied_and_its_own_answers_are_right():
    task = find_task("tools")
    assert isinstance(task, Calls)
    cases, names = task.cases, {tool["function"]["name"] for one in task.cases for tool in one["tools"]}
    assert len(cases) >= 60 and len(names) >= 12
    categories = {one["category"] for one in cases}
    assert {"single", "choose", "values", "several", "none", "missing", "turns", "languages"} <= categories
    for one in cases:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in one["tools"]}
        for wanted in one["wanted"]:
            jsonschema.validate(wanted.arguments, schemas[wanted.name])
            for name, accepted in wanted.accepted.items():
                for value in accepted or []:
                    jsonschema.validate(wanted.arguments | {name: value}, schemas[wanted.name])
    result = evaluate(perfect({json.dumps(one["messages"]): one["wanted"] for one in cases}), task, model="x")
    assert {figure.value for figure in result.figures} == {1.0}
    assert {figure.value for [figure] in result.groups.values()} == {1.0}
    assert result.figures[0].n == len(cases) and len({json.dumps(one["messages"]) for one in cases}) == len(cases)


def test_a_model_that_never_calls_is_right_where_none_fits():
    result = evaluate(ScriptedLLM("I do not know."), find_task("tools"), model="x")
    figures = {figure.name: figure for figure in result.figures}
    assert figures["no call where none fits"].value == 1.0
    assert figures["names, of cases with calls"].value == 0.0
    assert figures["arguments, where the names are right"].n == 0
    assert figures["right"].value == figures["no call where none fits"].n / figures["right"].n


def test_results_of_calls_are_compared_where_they_can_be_run(tmp_path):
    def calculate(expression: str) -> float:
        """Compute."""
        left, right = expression.split("*")
        return float(left) * float(right)

    declared = {"name": "calculate", "parameters": {"type": "object", "properties": {"expression": {}}}}
    other = {"name": "other", "parameters": {"type": "object", "properties": {}}}
    sums = [{"name": "calculate", "arguments": {"expression": "6 * 7"}}]
    lines = [
        {"tool": declared},
        {"tool": other},
        {"id": "sum", "tools": ["calculate", "other"], "prompt": "6 x 7", "calls": sums},
        {"id": "wrong", "tools": ["calculate"], "prompt": "6 x 7?", "calls": sums},
        {"id": "not here", "tools": ["other"], "prompt": "other", "calls": [{"name": "other"}]},
    ]
    task = find_task(str(write(tmp_path / "sums.jsonl", *lines)))
    task.execute = Toolbox([calculate], sandbox=None)
    made = [[("calculate", {"expression": "7*6"})], [("calculate", {"expression": "no"})], [("other", {})]]
    result = evaluate(ScriptedLLM(*made), task, model="x")
    assert [record["executed"] for record in result.records] == [True, False, None]
    assert [record["right"] for record in result.records] == [False, False, True]
    assert (result.figures[-1].name, result.figures[-1].value, result.figures[-1].n) == ("results, executed", 0.5, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: must be one JSON object in UTF-8"),
        ("[1]", ":2: must be an object, got"),
        (case(calls=[{"name": "wether"}]), ":2: the wanted call wether must be one of the case's tools: weather."),
        (case(calls=[{"name": "weather"}]), ":2: the wanted call of weather must say what city is."),
        (
            case(calls=[{"name": "weather", "arguments": {"town": "x"}}]),
            ":2: weather has no parameter town; it has city, unit, note.",
        ),
        (case(calls=[{"name": "weather", "arguments": {"city": "x"}, "accept": {"unit": "c"}}]), "accept.unit must be"),
        (case(tools=["snow"]), ':2: the tool "snow" must be declared on a line before.'),
        (case(prompt=3), ":2: prompt must be a text, got 3."),
        (case(messages=[]), ":2: must have prompt, a text, or messages"),
        (case(prompts="x"), ":2: has no prompts; known:"),
        ({"tool": TOOL}, ":2: there is a tool weather already."),
        ({"tool": {"name": 3}}, ":2: a tool must have a name"),
        ({"id": "x"}, ":2: must have tools, a list."),
    ],
)
def test_a_wrong_line_is_named(cases, line, message):
    path = cases(line)
    with pytest.raises(ConfigError) as caught:
        read_cases(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_ids_differ_and_there_is_something_to_ask(cases, tmp_path):
    with pytest.raises(ConfigError, match=":3: there is a case a already"):
        read_cases(cases(case(), case()))
    with pytest.raises(ConfigError, match="declares tools and has no case"):
        read_cases(cases())
    with pytest.raises(StorageError, match=r"none\.jsonl: the case cannot be read"):
        read_cases(tmp_path / "none.jsonl")
    assert (SETS / "tools.jsonl").is_file()
