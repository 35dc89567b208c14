"""Answers of a JSON schema: what a random model draws at temperature 2 is valid by jsonschema, or is not finished.

What a grammar cannot keep is refused by name.
"""

import datetime
import ipaddress
import json
import random
import re
import uuid

import jsonschema
import pytest
from drawing import allowed, drawn
from random_schemas import FEATURES, features_of, random_schema

from gemworks.errors import RequestError
from gemworks.text import grammar
from gemworks.text.closing import closed, exact, unkept

FEW, ALL = range(60), range(1000, 1500)


def check_schemas(engine, tokenizer, seeds):
    """What finished is valid; at least six of ten finished."""
    finished = 0
    for seed in seeds:
        schema = random_schema(seed)
        text = drawn(engine, tokenizer, grammar.json_schema(schema), seed)
        if text is not None:
            finished += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert finished >= 0.6 * len(seeds)


def test_what_is_drawn_is_valid_by_its_schema(engine, tokenizer):
    check_schemas(engine, tokenizer, FEW)


@pytest.mark.exhaustive
def test_what_is_drawn_is_valid_by_500_schemas(engine, tokenizer):
    check_schemas(engine, tokenizer, ALL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("told", [{"top_k": 0, "top_p": 1.0}, {"top_k": 64}, {"top_k": 64, "repetition_penalty": 1.1}])
def test_what_the_engine_answers_is_valid_by_500_schemas(told):
    """Eight schemas a step; the three kinds of draws that masks have (engine/draws.py)."""
    from gemworks import LLM

    llm, finished = LLM("tiny", max_sequences=8, context=512), 0
    for first in range(ALL.start, ALL.stop, 8):
        schemas = [random_schema(seed) for seed in range(first, min(first + 8, ALL.stop))]
        prompt = [{"role": "user", "content": "Tell me about the cat."}]
        asks = [
            llm.submit(llm.prepare(prompt, schema=one, temperature=2.0, seed=first, max_tokens=150, **told))
            for one in schemas
        ]
        for schema, answer in zip(schemas, [ask.last() for ask in asks], strict=True):
            if answer.finish_reason == "stop":
                finished += 1
                jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
    llm.close()
    assert finished >= 0.3 * len(ALL)


@pytest.mark.parametrize("seeds", [FEW, ALL])
def test_every_promised_feature_is_among_the_schemas(seeds):
    counts = dict.fromkeys(FEATURES, 0)
    for seed in seeds:
        for feature in features_of(random_schema(seed)):
            counts[feature] += 1
    assert min(counts.values()) >= len(seeds) // 60, counts


@pytest.mark.parametrize("format", ["date", "time", "date-time", "uuid", "ipv4", "ipv6"])
def test_formats_are_what_the_library_of_python_reads(engine, tokenizer, format):
    read = {
        "date": datetime.date.fromisoformat,
        "time": lambda text: datetime.time.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).upper()),
        "date-time": lambda text: datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).upper()),
        "uuid": uuid.UUID,
        "ipv4": ipaddress.IPv4Address,
        "ipv6": ipaddress.IPv6Address,
    }[format]
    schema = {"type": "string", "format": format, "maxLength": 60}
    texts = [drawn(engine, tokenizer, grammar.json_schema(schema), seed) for seed in range(8)]
    for text in filter(None, texts):
        read(json.loads(text))
    assert any(texts)


def accepts(engine, tokenizer, schema, value) -> bool:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    try:
        return engine.constrain(grammar.json_schema(schema)).is_complete(tokenizer.encode(text))
    except RequestError:
        return False


@pytest.mark.parametrize(
    ("format", "right", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-02-30", "0000-01-01"]),
        ("time", ["23:59:59Z", "00:00:00.5+23:59"], ["23:59:60Z", "24:00:00Z", "12:00:00"]),
        ("date-time", ["2024-02-29T12:00:00Z"], ["2023-02-29T12:00:00Z", "2024-02-29T12:00:60Z", "2024-02-29"]),
    ],
)
def test_no_day_or_time_that_there_is_not(engine, tokenizer, format, right, wrong):
    for schema in ({"format": format}, {"type": "string", "format": format, "pattern": "[0-9]"}):
        assert [accepts(engine, tokenizer, schema, text) for text in right] == [True] * len(right)
        assert [accepts(engine, tokenizer, schema, text) for text in wrong] == [False] * len(wrong)


def test_every_day_of_ten_years_is_a_date_and_no_other_is():
    pattern = re.compile(exact({"format": "date"})["pattern"])
    for year in (1, 4, 100, 400, 1900, 1999, 2000, 2023, 2024, 2400):
        for month in range(14):
            for day in range(33):
                text = f"{year:04}-{month:02}-{day:02}"
                try:
                    datetime.date.fromisoformat(text)
                except ValueError:
                    assert not pattern.match(text), text
                else:
                    assert pattern.match(text), text


def test_bounds_that_no_double_is_are_moved_inside():
    schema = {"minimum": -(2**63) - 1, "maximum": 2**63 - 1, "exclusiveMaximum": 2**64 + 1, "exclusiveMinimum": 3}
    made = exact({"items": schema})["items"]
    assert made == {
        "minimum": -(2**63),
        "maximum": 2**63 - 1024,
        "exclusiveMaximum": 2**64,
        "exclusiveMinimum": 3,
    }
    assert schema["maximum"] == 2**63 - 1, "the schema that was given is not changed"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"if": {}, "then": {}, "else": {}}, 'Unimplemented keys: ["else", "if", "then"]'),
        ({"contains": {}, "minContains": 1, "maxContains": 2}, '["contains", "maxContains", "minContains"]'),
        ({"uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"propertyNames": {"maxLength": 3}}, 'Unimplemented keys: ["propertyNames"]'),
        ({"dependentRequired": {"a": ["b"]}}, 'Unimplemented keys: ["dependentRequired"]'),
        ({"dependentSchemas": {"a": {}}}, 'Unimplemented keys: ["dependentSchemas"]'),
        ({"dependencies": {"a": ["b"]}}, 'Unimplemented keys: ["dependencies"]'),
        ({"unevaluatedItems": False}, 'Unimplemented keys: ["unevaluatedItems"]'),
        ({"unevaluatedProperties": False}, 'Unimplemented keys: ["unevaluatedProperties"]'),
        ({"$dynamicRef": "#n"}, 'Unimplemented keys: ["$dynamicRef"]'),
        ({"$recursiveRef": "#"}, 'Unimplemented keys: ["$recursiveRef"]'),
        ({"properties": {"a": {"items": {"not": {}}}}}, 'Unimplemented keys: ["not"]'),
        ({"oneOf": [{"minimum": 2}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "format": "phone"}, "Unknown format: phone"),
        ({"$ref": "http://example.com/a.json"}, "example.com"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "cannot be followed"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"enum": [1, {"a": [2**53 + 1]}]}, "enum has 9007199254740993, and integers beyond 2^53"),
        ({"items": {"const": -(2**60)}}, "const has -1152921504606846976"),
        ({"type": "object", "minProperties": 2}, "minProperties asks for 2 properties beside those that are required"),
        ({"required": ["a"], "minProperties": 3}, "minProperties asks for 2 properties beside those"),
        (False, "cannot be followed"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(schema, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        grammar.json_schema(schema)


def test_what_only_looks_like_a_keyword_is_kept():
    """Names of properties, and values of const and enum, may be words of the language."""
    for schema in (
        {"type": "object", "properties": {"not": {"type": "string"}, "minProperties": {}, "uniqueItems": {"const": 1}}},
        {"const": {"minProperties": 5, "format": "date"}},
        {"enum": [{"$ref": "http://example.com/a.json"}]},
        {"type": "object", "minProperties": 2, "required": ["a", "b"]},
    ):
        grammar.json_schema(schema)
        assert unkept(schema) is None
    assert exact({"properties": {"format": {"const": {"format": "date"}}}}) == {
        "properties": {"format": {"const": {"format": "date"}}}
    }


def test_a_schema_that_came_before_is_not_compiled_again(monkeypatch):
    schema = {"type": "object", "properties": {f"p{random.random()}": {"type": "string"}}}
    first = grammar.json_schema(schema)
    monkeypatch.setattr(grammar, "_library", lambda: pytest.fail("compiled again"))
    assert grammar.json_schema(dict(schema)) is first and grammar.json_schema(json.dumps(schema)) is first


def test_an_object_gets_no_property_that_nobody_named(engine, tokenizer):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert accepts(engine, tokenizer, schema, {"a": 1}) and accepts(engine, tokenizer, schema, {})
    assert not accepts(engine, tokenizer, schema, {"a": 1, "b": 2})
    assert accepts(engine, tokenizer, schema | {"additionalProperties": True}, {"a": 1, "b": 2})
    assert closed(schema)["additionalProperties"] is False
    first = allowed(engine.constrain(grammar.json_schema(schema)), [])
    assert {tokenizer.token_bytes(int(i))[:1] for i in first} == {b"{"}
