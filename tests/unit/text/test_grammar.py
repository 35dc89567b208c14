"""Answers of a form: whatever a random model draws is one, or is not finished; checked by jsonschema and re."""

import json
import random
import re

import jsonschema
import numpy as np
import pytest

from gemworks.errors import RequestError
from gemworks.text import grammar
from gemworks.text.closing import closed
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.hub import TINY

ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string"}, "no": {"type": "integer"}},
    "required": ["no"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TINY)


@pytest.fixture(scope="module")
def engine(tokenizer):
    return grammar.GrammarEngine(tokenizer, vocab=tokenizer.size + 5, end_ids=ends(tokenizer))


def ends(tokenizer):
    return [tokenizer.end_of_turn_id, tokenizer.eos_id]


def allowed(constraint, ids):
    return np.flatnonzero(np.unpackbits(constraint(ids).view(np.uint8), bitorder="little"))


def drawn(engine, tokenizer, form, seed, longest=400):
    """The text that a model of random logits draws, None where it does not finish."""
    rng, constraint, ids = random.Random(seed), engine.constrain(form), []
    closing = [i for i in range(tokenizer.size) if tokenizer.token_bytes(i)[:1] in (b'"', b"}", b"]")]
    for step in range(longest):
        allowed_ids = allowed(constraint, ids)
        assert len(allowed_ids) and allowed_ids[-1] < tokenizer.size
        # All words alike would write strings for ever: half of the draws close something where that is allowed.
        likely = [i for i in closing if i in allowed_ids] if step > 20 and rng.random() < 0.5 else []
        token_id = rng.choice(likely or list(allowed_ids))
        if token_id in ends(tokenizer):
            assert constraint.is_complete(ids)
            return tokenizer.decode(ids)
        assert token_id not in tokenizer.control_ids
        ids.append(int(token_id))
    return None


def some_schema(rng, depth=0):
    """A schema of varied features that llguidance documents as supported."""
    simple = [
        lambda: {"type": "integer", "minimum": rng.randint(-9, 5), "maximum": rng.randint(6, 999)},
        lambda: {"type": "number", "exclusiveMinimum": rng.randint(-9, 0), "maximum": rng.randint(1, 99)},
        lambda: {"type": "integer", "multipleOf": rng.choice([2, 3, 7])},
        lambda: {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(3, 9)},
        lambda: {"type": "string", "pattern": rng.choice(["^[a-f]{2,4}$", r"^\d+-\d+$", "^(ab|cd)*x$"])},
        lambda: {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid", "ipv4", "email"])},
        lambda: {"enum": rng.sample(["a", "\u00e9", 3, None, True, {"b": [1]}, "\u6f22\u5b57", 'q"\\'], 3)},
        lambda: {"const": rng.choice([1.5, "x", None, [1, "two"], {"k": "v"}])},
        lambda: {"type": rng.choice(["boolean", "null"])},
        lambda: {"type": ["string", "null"], "maxLength": 5},
    ]
    if depth >= 3 or rng.random() < 0.4:
        return rng.choice(simple)()
    below = lambda: some_schema(rng, depth + 1)  # noqa: E731
    names = rng.sample(["a", "b", "na\u00efve", "\u043a\u043b\u044e\u0447", "c d", "x-y"], rng.randint(1, 4))
    nested = [
        lambda: {
            "type": "object",
            "properties": {name: below() for name in names},
            "required": rng.sample(names, rng.randint(0, len(names))),
            **rng.choice([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}]),
        },
        lambda: {"type": "array", "items": below(), "minItems": rng.randint(0, 2), "maxItems": rng.randint(2, 4)},
        lambda: {"type": "array", "prefixItems": [below(), below()], "items": False, "minItems": 2},
        lambda: {"anyOf": [below(), below()]},
        lambda: {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "boolean"}, {"type": "null"}]},
        lambda: {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
        lambda: {"type": "object", "patternProperties": {"^k[0-9]$": below()}, "additionalProperties": False},
        lambda: {"type": "object", "properties": {"a": below()}, "required": ["a"], "maxProperties": 3},
    ]
    made = rng.choice(nested)()
    if depth == 0 and rng.random() < 0.3:
        node = {
            "type": "object",
            "properties": {"v": made, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
        }
        return {"$defs": {"n": node | {"required": ["v", "next"]}}, "$ref": "#/$defs/n"}
    return made


def check_schemas(engine, tokenizer, seeds, least):
    """What finished is valid; at least a share `least` finished."""
    finished = 0
    for seed in seeds:
        schema = some_schema(random.Random(seed))
        text = drawn(engine, tokenizer, grammar.json_schema(schema), seed)
        if text is not None:
            finished += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert finished >= least * len(seeds)


def test_what_is_drawn_is_valid_by_its_schema(engine, tokenizer):
    check_schemas(engine, tokenizer, range(40), 0.6)


@pytest.mark.exhaustive
def test_what_is_drawn_is_valid_by_500_schemas(engine, tokenizer):
    check_schemas(engine, tokenizer, range(1000, 1500), 0.6)


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
        assert text is None or text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)


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
