"""Calls found in what a model writes: what they say, what stays text, and that it does not matter how it comes."""

import ast
import itertools
import json
import keyword
import string
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemworks.text.toolcalls import CallReader, read_calls

NAMES = ["weather", "clock", "weather_2", "math.add", "get-it"]


def read(text, **told):
    said, calls = read_calls(text, NAMES, **told)
    return said, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[weather(city="Paris", days=2), clock()]', [("weather", {"city": "Paris", "days": 2}), ("clock", {})]),
        ("weather(city='it\\'s', ok=True, none=None)", [("weather", {"city": "it's", "ok": True, "none": None})]),
        ("weather(ok=true, none=null,)", [("weather", {"ok": True, "none": None})]),
        ("```tool_code\nweather(a=[1, (2, 3), {'b': {}}])\n```", [("weather", {"a": [1, [2, 3], {"b": {}}]})]),
        ("```tool_code\n[clock()]\n```\n", [("clock", {})]),
        ("```tool_code\nclock()\nweather(a=1)\n```", [("clock", {}), ("weather", {"a": 1})]),
        ("clock()\n\nclock()\n", [("clock", {}), ("clock", {})]),
        ('{"name": "weather", "parameters": {"city": "Paris"}}', [("weather", {"city": "Paris"})]),
        ('{"name":"weather","arguments":{"a":[true,null]}}', [("weather", {"a": [True, None]})]),
        ('```json\n[\n  {"name": "clock"},\n  {"name": "clock", "parameters": {}}\n]\n```', [("clock", {})] * 2),
        ('[math.add(**{"a b": 1}), get-it(x=1)]', [("math.add", {"a b": 1}), ("get-it", {"x": 1})]),
        ("weather_2(x=-1.5e3, y=0x1F, z=1_000, w=.5)", [("weather_2", {"x": -1500.0, "y": 31, "z": 1000, "w": 0.5})]),
        (
            'weather(a="""two\n"lines\\" """, b=r"\\d", c=\'\')',
            [("weather", {"a": 'two\n"lines" ', "b": "\\d", "c": ""})],
        ),
        ('weather(a="\\u00e9\\x41\\ud83d\\ude00\\ud83d!")', [("weather", {"a": "\u00e9A\U0001f600\ufffd!"})]),
        ("  \t[ \n weather( city = 'x' , ) , ]", [("weather", {"city": "x"})]),
    ],
)
def test_calls_are_read(text, calls):
    assert read(text) == ("", calls)


@pytest.mark.parametrize(
    "text",
    [
        "Hello.\n",
        "Call weather(city='x') to see.",  # in the middle of a line
        "weather('Paris')",  # arguments have names
        "weather(city=Paris)",
        "weather(city='x'",
        "weather(a=1, a=2)",
        "[weather(a=1), unknown()]",
        "[weather(a=1), clock(",
        "unknown(a=1)",
        "weather (",
        "[text](https://example.com)",
        "```python\nprint(1)\n```",
        "```tool_code\nprint(1)\n```",
        '{"name": "nobody", "parameters": {}}',
        '{"name": "weather", "more": 1}',
        '{"parameters": {}, "name": "weather"}',
        '{"weather": 1}',
        "weather(x=1+1)",
        "weather(x=f'a')",
        "weather(x='a\n')",
        "weather(x=007)",
        "weather(x=(1))",
        "weather(x=" + "[" * 400,
        "weather(x={1: 2})",
        "weather(x='\\ud8zz')",
        "weather(1a=2)",
        "weather(x=1e999999j)",
        "`weather()`",
        "\n  \n",
        "",
    ],
)
def test_what_is_no_call_stays_text(text):
    assert read(text) == (text, [])


def test_text_beside_calls_stays_and_white_space_around_them_goes():
    said, calls = read("Let me see.\n\n```tool_code\nclock()\n```\n\nThere.\n")
    assert (said, calls) == ("Let me see.\n\nThere.\n", [("clock", {})])
    assert read("[clock()] is how.") == (" is how.", [("clock", {})])
    assert read("a\nclock()\nb\nweather(\nc") == ("a\nb\nweather(\nc", [("clock", {})])


def in_pieces(text, cuts, *, eager=False):
    """What a reader tells of a text in pieces: text, calls, and calls put together from their pieces."""
    reader = CallReader(NAMES, eager=eager)
    edges = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    told = [reader.push(text[a:b]) for a, b in itertools.pairwise(edges)] + [reader.finish()]
    said = "".join(text for text, _ in told)
    built: list[list] = []
    for _, deltas in told:
        for delta in deltas:
            if delta.id is not None:
                assert delta.index == len(built) and delta.text == ""
                built.append([delta.name, ""])
            else:
                built[delta.index][1] += delta.text
    return said, [(call.name, call.text) for call in reader.calls], [tuple(one) for one in built], reader.partial


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.text(string.ascii_letters + "_", min_size=1, max_size=6).filter(lambda key: not keyword.iskeyword(key))
CALLS = st.tuples(st.sampled_from(NAMES[:3]), st.dictionaries(KEYS, VALUES, max_size=3))


def pythonic(calls, quote):
    return "[" + ", ".join(f"{n}({', '.join(f'{k}={quote(v)}' for k, v in a.items())})" for n, a in calls) + "]"


PIECES = st.one_of(
    st.lists(CALLS, min_size=1, max_size=2).map(lambda calls: pythonic(calls, repr)),
    st.lists(CALLS, min_size=1, max_size=2).map(lambda calls: pythonic(calls, json.dumps)),
    st.lists(CALLS, min_size=1, max_size=2).map(
        lambda calls: json.dumps([{"name": n, "parameters": a} for n, a in calls], indent=1)
    ),
    st.sampled_from(
        ["\n", "```tool_code\n", "```json\n", "```", "Sure.", " ", "weather(", "[", '{"name"', "clock()\n"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES, max_size=5), cuts=st.lists(st.integers(0, 300), max_size=12))
def test_any_pieces_give_the_same(pieces, cuts):
    text = "".join(pieces)
    said, calls, built, partial = in_pieces(text, cuts)
    assert (said, calls, partial) == (*in_pieces(text, [])[:2], None)
    assert built == calls, "the pieces of the calls are the calls"
    assert in_pieces(text, range(len(text)))[:3] == (said, calls, built)
    eager = in_pieces(text, cuts, eager=True)
    whole = in_pieces(text, [], eager=True)
    assert eager[:3] == whole[:3] and (eager[3] and eager[3].source) == (whole[3] and whole[3].source)


@settings(max_examples=80, deadline=None)
@given(calls=st.lists(CALLS, min_size=1, max_size=3))
def test_python_reads_pythonic_calls_the_same(calls):
    """The independent reader is Python's own."""
    text = pythonic(calls, repr)
    parsed = ast.parse(text, mode="eval").body
    wanted = [
        (ast.unparse(one.func), {word.arg: ast.literal_eval(word.value) for word in one.keywords})
        for one in parsed.elts  # type: ignore[attr-defined]
    ]
    said, got = read(text)
    assert said == "" and json.dumps(got) == json.dumps(wanted)


@settings(max_examples=60, deadline=None)
@given(text=st.text("\\\"'\n nrtx0419uUabNd{}", max_size=20), quote=st.sampled_from(["'", '"', "'''", '"""', "r'"]))
def test_texts_are_read_as_python_reads_them(text, quote):
    source = f"weather(a={quote}{text}{quote.lstrip('r')})"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that are none
        try:
            wanted = ast.literal_eval(source.removeprefix("weather(a=").removesuffix(")"))
        except (SyntaxError, ValueError):
            return
    if not isinstance(wanted, str) or "\\N" in text or any("\ud800" <= one <= "\udfff" for one in wanted):
        return  # names of characters are not read, and halves of pairs become U+FFFD
    told = [call.arguments["a"] for call in read_calls(source, NAMES)[1]]
    assert told in ([wanted], []) if "\n" in text or quote[-1] in text else told == [wanted]


def test_a_call_that_breaks_off_is_told_as_that():
    said, calls, built, partial = in_pieces('Wait.\n[clock(), weather(city="Par', range(40), eager=True)
    assert said == "Wait." and calls == [("clock", "{}")]
    assert partial and (partial.name, partial.text) == ("weather", '{"city":"Par')
    assert built == [("clock", "{}"), ("weather", '{"city":"Par')]
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(partial.text)


def test_whatever_is_told_of_a_call_cut_short_is_no_json():
    text = '[weather(a={"b": [1, "x"]}, c=1)]'
    for end in range(len("[weather("), len(text) - 1):
        partial = in_pieces(text[:end], [], eager=True)[3]
        assert partial is not None
        with pytest.raises(ValueError):
            json.loads(partial.text)


def test_long_arguments_take_linear_time():
    """A hundred thousand characters in pieces of four; quadratic reading would take minutes."""
    reader = CallReader(["f"], eager=True)
    reader.push("f(code='")
    for _ in range(25_000):
        reader.push("abcd")
    reader.push("')")
    assert len(reader.calls[0].arguments["code"]) == 100_000
