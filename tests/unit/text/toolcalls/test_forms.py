"""Answers that may call: whatever a random model draws is text, or calls that are valid by their schemas."""

import random

import jsonschema
import numpy as np
import pytest
from control_vocabulary import control_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gemworks.errors import RequestError
from gemworks.text import grammar
from gemworks.text.toolcalls import CallReader, toolset_of
from gemworks.text.toolcalls.auto import CallMasks, Heads
from gemworks.text.toolcalls.control import CALL, CALLED, ESCAPE, ControlTokens
from gemworks.text.toolcalls.control_reader import ControlReader
from gemworks.text.toolcalls.forms import MOST_CALLS, calls_grammar
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.hub import TINY


def tool(name, parameters=None, description=""):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}


def some_argument(rng, depth=0):
    simple = [
        {"type": "integer", "minimum": rng.randint(-9, 0), "maximum": rng.randint(1, 99)},
        {"type": "number", "minimum": 0, "maximum": 9},
        {"type": "string", "maxLength": rng.randint(1, 6)},
        {"type": "string", "pattern": "^[a-f]{2,4}$"},
        {"enum": rng.sample(["a b", "\u00e9", 3, None, True, "x,y"], 3)},
        {"const": rng.choice([1.5, "x", None])},
        {"type": ["boolean", "null"]},
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
    ]
    if depth >= 2 or rng.random() < 0.6:
        return rng.choice(simple)
    if rng.random() < 0.5:
        return {"type": "array", "items": some_argument(rng, depth + 1), "minItems": rng.randint(0, 1), "maxItems": 2}
    return some_parameters(rng, depth + 1)


def some_parameters(rng, depth=0):
    names = rng.sample(["a", "b", "B2", "cd", "e_f"], rng.randint(0, 3))
    needed = rng.sample(names, rng.randint(0, len(names)))
    return {"type": "object", "properties": {n: some_argument(rng, depth) for n in names}, "required": needed}


@pytest.fixture(scope="module")
def tokenizer():
    return control_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer):
    return grammar.GrammarEngine(tokenizer, vocab=tokenizer.size, end_ids=ends(tokenizer))


@pytest.fixture(scope="module")
def masks(engine, tokenizer):
    """The mask of answers with a set of tools."""
    auto = CallMasks(engine, tokenizer, vocab=tokenizer.size)

    def mask_of(toolset, form=None):
        tokens = ControlTokens.of(tokenizer)
        made = calls_grammar(toolset, form, tokens)
        if toolset.is_required or form is not None:
            return engine.constrain(made)
        names = [one.name for one in toolset.callable]
        return auto.mask(made, names, tokens if toolset.style == "functiongemma" else None)

    return mask_of


def ends(tokenizer):
    return [tokenizer.end_of_turn_id, tokenizer.eos_id]


def drawn(constraint, tokenizer, seed, *, begin="", longest=300):
    """The ids that a model of random logits draws after `begin`, and whether the answer is whole."""
    rng, ids = random.Random(seed), tokenizer.encode(begin)
    marks = ControlTokens.of(tokenizer).marks
    closing = [i for i in range(tokenizer.size) if i in marks or tokenizer.token_bytes(i)[:1] in b'"}])']
    for step in range(longest):
        allowed = [
            i for i in allowed_by(constraint(ids), tokenizer) if i not in marks or marks[i] in (CALL, CALLED, ESCAPE)
        ]
        assert allowed
        likely = [i for i in closing if i in allowed] if step > 10 and rng.random() < 0.5 else []
        over = [i for i in ends(tokenizer) if i in allowed] if rng.random() < 0.3 else []
        token_id = int(rng.choice(over or likely or list(allowed)))
        if token_id in ends(tokenizer):
            assert constraint.is_complete(ids)
            return ids, True
        ids.append(token_id)
    return ids, False


def allowed_by(words, tokenizer):
    if words is None:
        spoken = {*ends(tokenizer), *ControlTokens.of(tokenizer).ids}
        return [i for i in range(tokenizer.size) if i not in tokenizer.control_ids or i in spoken]
    return [
        int(i) for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")) if i < tokenizer.size
    ]


def read(tokenizer, toolset, ids):
    """The reader of an answer that has read it."""
    names, marks = [one.name for one in toolset.callable], ControlTokens.of(tokenizer).marks
    reader = ControlReader(names) if toolset.style == "functiongemma" else CallReader(names, eager=True)
    decoder, said = tokenizer.stream(), ""
    for token_id in ids:
        said += reader.push(decoder.push(token_id) + marks.get(token_id, ""))[0]
    said += reader.push(decoder.finish())[0] + reader.finish()[0]
    return said, reader


def check(masks, tokenizer, seeds, style, choice, *, begin="", least=0.4):
    finished = 0
    for seed in seeds:
        rng = random.Random(seed)
        tools = [tool(name, some_parameters(rng)) for name in ("f", "get_weather", "f2")]
        toolset = toolset_of(tools, choice, rng.random() < 0.7, style)
        ids, is_whole = drawn(masks(toolset), tokenizer, seed, begin=begin)
        said, reader = read(tokenizer, toolset, ids)
        schemas = {one.name: one.parameters for one in toolset.callable}
        for call in reader.calls:
            jsonschema.Draft202012Validator(schemas[call.name]).validate(call.arguments)
        if is_whole:
            finished += 1
            assert reader.partial is None
            if choice != "auto" or begin:
                assert reader.calls and (begin or said == ""), (style, said)
            assert len(reader.calls) <= (MOST_CALLS if toolset.parallel else 1)
    assert finished >= least * len(seeds)


STYLES = ("python", "json", "functiongemma")
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_is_asked_for_is_one(masks, tokenizer, style, choice):
    check(masks, tokenizer, range(6), style, choice)


@pytest.mark.parametrize("begin", ["Yes.\n[f(", "f2(", '```json\n[{"name": "f"', "get_weather(", '{ "name" :"f2"'])
def test_a_call_that_has_begun_ends_as_one(masks, tokenizer, begin):
    check(masks, tokenizer, range(4), "python", "auto", begin=begin)


@pytest.mark.exhaustive
@pytest.mark.parametrize("style", STYLES)
def test_150_toolsets_of_each_style(masks, tokenizer, style):
    check(masks, tokenizer, range(100, 150), style, "required")
    check(masks, tokenizer, range(200, 250), style, NAMED)
    begins = {"python": "Well,\n[get_weather(", "json": '[\n{"name": "get_weather"', "functiongemma": ""}
    check(masks, tokenizer, range(300, 350), style, "auto", begin=begins[style], least=0.3)


def allowed_after(mask, tokenizer, text):
    ids = allowed_by(mask(tokenizer.encode(text)), tokenizer)
    told = {tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids if i not in tokenizer.control_ids}
    return told, {i for i in ids if i in ends(tokenizer)}


def test_free_text_is_free_until_a_call_begins(masks, tokenizer):
    mask = masks(toolset_of([tool("f", CITY)], "auto", True, "python"))
    for text in ("", "Call f(x) like so: [f", "[g(", '{"name": "g"', "f\n", "fo(", "[f\n"):
        assert {"(", "a", "\n", '"', "]", "('"} <= allowed_after(mask, tokenizer, text)[0], text
    only, over = allowed_after(mask, tokenizer, "[f(")
    assert only and all("city=".startswith(one) or one.startswith("city=") for one in only) and not over
    for whole in ('[f(city="x")]', 'f(city="x")', '{"name":"f", "parameters": {"city":"x"}}', '[f(city="x")]\n```'):
        assert mask.is_complete(tokenizer.encode(f"Yes.\n{whole}")), whole
        assert allowed_after(mask, tokenizer, whole)[1] == set(ends(tokenizer))
    for begun in ("f", "[f", "[ f", "[\n\tf", "a\n f"):
        only, _ = allowed_after(mask, tokenizer, begun)
        assert "(" in only and not {"('", '("'} & only, "no token leads from text into the middle of a wrong call"


def test_a_mask_follows_an_answer_back_and_forth(masks, tokenizer):
    ids = tokenizer.encode('Hm.\n[f(city="x")]')
    toolset = toolset_of([tool("f", CITY)], "auto", True, "python")
    fresh = [allowed_by(masks(toolset)(ids[:n]), tokenizer) for n in range(len(ids))]
    mask = masks(toolset)
    other = mask.fork()
    for n in random.Random(0).choices(range(len(ids)), k=30):
        assert allowed_by(mask(ids[:n]), tokenizer) == fresh[n] == allowed_by(other(ids[: n + 1][:n]), tokenizer)


@settings(max_examples=200, deadline=None)
@given(st.text('[{("name:fg \t\n`x', max_size=14))
def test_mask_and_reader_find_the_same_heads(text):
    """Wherever a reader begins a call, the mask does; and the other way round."""
    reader, begun = CallReader(["f", "fg"], eager=True), None
    for end in range(1, len(text) + 1):
        if any(delta.name for delta in reader.push(text[end - 1])[1]):
            begun = end
            break
    heads, line, place = Heads(["f", "fg"]), "", None
    for end, character in enumerate(text, 1):
        line += character
        while line is not None and (found := heads.find(line.encode())).kind == "dead" and "\n" in line:
            line = line.split("\n", 1)[1]
        if found.kind == "done":
            place = end
            break
    assert place == begun or "`" in text[: begun or len(text)]


def test_one_call_is_one_without_parallel_calls(masks, tokenizer):
    for parallel in (True, False):
        mask = masks(toolset_of([tool("f")], "auto", parallel, "python"))
        for text, end in (("[f()", "]"), ('[{"name": "f", "parameters": {}}', "]")):
            told, over = allowed_after(mask, tokenizer, text)
            assert ("," in told or ", " in told) == parallel and end in told and not over


def test_functiongemma_is_free_until_its_token(masks, tokenizer):
    mask = masks(toolset_of([tool("f", CITY)], "auto", True, "functiongemma"))
    tokens = ControlTokens.of(tokenizer)
    assert mask(tokenizer.encode("[f(")) is None
    call = tokens.to_ids(tokenizer, f"Yes. {CALL}call:f{{city:{ESCAPE}x{ESCAPE}}}{CALLED}")
    assert mask.is_complete(call) and not mask.is_complete(call[:-1])


def test_a_form_or_a_call(masks, tokenizer):
    toolset = toolset_of([tool("f", CITY)], "auto", True, "python")
    form = grammar.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    mask = masks(toolset, form)
    for text, is_whole in (('{"a":1}', True), ('[f(city="x")]', True), ('{"a":', False)):
        assert mask.is_complete(tokenizer.encode(text)) == is_whole
    with pytest.raises(RequestError, match="tool_style json"):
        calls_grammar(toolset_of([tool("f")], "auto", True, "json"), grammar.json_object())
    with pytest.raises(RequestError, match="not with a grammar"):
        calls_grammar(toolset, grammar.regex("a"))


@pytest.mark.parametrize(
    ("parameters", "texts"),
    [
        ({"type": "object", "properties": {"c d": {"const": 1}}, "required": ["c d"]}, ['[f(**{"c d":1})]']),
        (
            {"type": "object", "patternProperties": {"^k$": {"const": 2}}, "additionalProperties": False},
            ['[f(**{"k":2})]'],
        ),
        ({"$defs": {"n": {"const": 3}}, "properties": {"x": {"$ref": "#/$defs/n"}}}, ["[f(x=3)]", "[f()]"]),
        ({"properties": {"x": {"const": 1}, "y": {"const": 2}}, "required": ["y"]}, ["[f(x=1, y=2)]", "[f(y=2)]"]),
        ({"type": "object"}, ["[f()]"]),
        (None, ["[f()]"]),
    ],
)
def test_schemas_as_arguments_of_python(engine, tokenizer, parameters, texts):
    constraint = engine.constrain(calls_grammar(toolset_of([tool("f", parameters)], "required", False, "python")))
    for text in texts:
        assert constraint.is_complete(tokenizer.encode(text)), text


@pytest.mark.parametrize(
    ("parameters", "style", "said"),
    [
        ({"properties": {"a": {"not": {}}}}, "python", r'tools\[1\].function.parameters cannot be followed: .*"not"'),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "json", r"tools\[1\].*uniqueItems"),
        ({"properties": {"a": {"type": "string", "format": "date"}}}, "functiongemma", r"tools\[1\].*: format"),
        ({"properties": {"a:b": {}}}, "functiongemma", r"tools\[1\].*the property 'a:b'"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(tokenizer, parameters, style, said):
    toolset = toolset_of([tool("ok", CITY), tool("f", parameters)], "auto", True, style)
    with pytest.raises(RequestError, match=said):
        calls_grammar(toolset, tokens=ControlTokens.of(tokenizer))


def test_the_models_own_vocabulary_has_no_such_tokens():
    assert ControlTokens.of(Tokenizer.load(TINY)) is None
