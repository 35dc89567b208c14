"""Answers of a form: whatever a random model draws is one, or is not finished. Schemas: test_schemas.py."""

import random
import re

import pytest
from drawing import allowed, drawn, ends

from gemworks.errors import RequestError
from gemworks.text import grammar
from gemworks.text.closing import closed

ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string"}, "no": {"type": "integer"}},
    "required": ["no"],
}


def test_no_whitespace_between_parts(engine, tokenizer):
    schema = {
        "type": "array",
        "items": ADDRESS,
        "minItems": 2,
        "maxItems": 3,
        "x-guidance": {"whitespace_flexible": True},
    }
    for seed in range(5):
        text = drawn(engine, tokenizer, grammar.json_schema(schema), seed)
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text or "")
        assert not re.search(r"\s", outside), text


@pytest.mark.parametrize("pattern", ["[a-c]{3}-[0-9]+", "(yes|no)( maybe)?", "\\p{Lu}\\w{2}"])
def test_a_regular_expression_is_matched_as_a_whole(engine, tokenizer, pattern):
    compiled = re.compile(pattern.replace("\\p{Lu}", "[A-Z\u00c0-\u00de\u0100-\uffff]"))
    for seed in range(4):
        text = drawn(engine, tokenizer, grammar.regex(pattern), seed)
        assert text is None or compiled.fullmatch(text), text


def test_a_choice_is_one_of_its_texts(engine, tokenizer):
    texts = ["Paris", "Par", 'say "no"', "\u6f22", "a\nb", "back\\slash"]
    got = {drawn(engine, tokenizer, grammar.choice(texts), seed) for seed in range(60)}
    assert got == set(texts)


def test_a_context_free_grammar_counts(engine, tokenizer):
    form = grammar.lark('start: "a" start "b" | "c"')
    for seed in range(10):
        text = drawn(engine, tokenizer, form, seed)
        assert text is None or (re.fullmatch(r"(a*)c(b*)", text) and text.count("a") == text.count("b"))


def test_ends_are_allowed_where_the_form_is_complete_and_only_there(engine, tokenizer):
    constraint = engine.constrain(grammar.choice(["ab", "abc"]))
    for text, may_end in (("", False), ("a", False), ("ab", True), ("abc", True)):
        ids = tokenizer.encode(text)
        assert (set(ends(tokenizer)) <= set(allowed(constraint, ids))) == may_end
        assert constraint.is_complete(ids) == may_end
    assert set(allowed(constraint, tokenizer.encode("abc"))) == set(ends(tokenizer))


def test_masks_follow_an_answer_back_and_forth(engine, tokenizer):
    """Speculation and resumed answers call with tokens that were taken back."""
    form = grammar.json_schema(ADDRESS)
    ids = tokenizer.encode('{"street":"Low Road","no":12}')
    fresh = [engine.constrain(form)(ids[:n]).tolist() for n in range(len(ids))]
    constraint = engine.constrain(form)
    for n in random.Random(0).choices(range(len(ids)), k=40):
        assert constraint(ids[:n]).tolist() == fresh[n]


def test_a_fork_begins_anew_and_leaves_the_other_alone(engine, tokenizer):
    form = grammar.choice(["ab", "cd"])
    one = engine.constrain(form)
    first = one([]).tolist()
    after = one(tokenizer.encode("a")).tolist()
    other = one.fork()
    assert other([]).tolist() == first
    other(tokenizer.encode("c"))
    assert one(tokenizer.encode("a")).tolist() == after


def test_a_token_against_the_form_is_an_error(engine, tokenizer):
    with pytest.raises(RequestError, match="the choice cannot be followed"):
        engine.constrain(grammar.choice(["ab"]))(tokenizer.encode("x"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: grammar.json_schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
        (lambda: grammar.json_schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (lambda: grammar.json_schema({"not": {}, "x-guidance": {"lenient": True}}), 'Unimplemented keys: ["not"]'),
        (lambda: grammar.json_schema({"type": "strin"}), "Invalid type: strin"),
        (lambda: grammar.json_schema({"type": "string", "format": "phone"}), "Unknown format: phone"),
        (lambda: grammar.json_schema({"$ref": "http://example.com/a.json"}), "example.com"),
        (lambda: grammar.json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "cannot be followed"),
        (lambda: grammar.json_schema(False), "cannot be followed"),
        (lambda: grammar.json_schema("{"), "must be JSON, got"),
        (lambda: grammar.json_schema("[1]"), "must be a JSON object, got list"),
        (lambda: grammar.json_schema({"a": {1, 2}}), "must be a JSON schema, got"),
        (lambda: grammar.regex("(?=a)b"), "look-ahead"),
        (lambda: grammar.choice([]), "one or more texts"),
        (lambda: grammar.choice("abc"), "one or more texts"),
        (lambda: grammar.lark("start"), "the grammar cannot be followed"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(make, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        make()


def test_a_deep_schema_is_an_error_and_no_crash():
    schema = {"type": "integer"}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="must be a JSON schema"):
        grammar.json_schema(schema)


def test_objects_are_closed_unless_they_say_otherwise():
    inner = {"type": "object", "properties": {"a": {}}}
    assert closed({"items": inner})["items"]["additionalProperties"] is False
    assert closed({"$defs": {"x": inner}})["$defs"]["x"]["additionalProperties"] is False
    assert closed({"anyOf": [inner, {}]})["anyOf"][0]["additionalProperties"] is False
    for says in ({"additionalProperties": True}, {"patternProperties": {}}, {"required": ["b"]}, {"minProperties": 2}):
        assert closed(inner | says) == inner | says
    for combined in ({"allOf": [inner, inner]}, inner | {"anyOf": [inner]}, inner | {"$ref": "#/x"}):
        assert closed(combined) == combined
    assert inner == {"type": "object", "properties": {"a": {}}}, "the schema that was given is not changed"
