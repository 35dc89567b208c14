"""schema= and grammar= of LLM: what comes back is of the form, or is told to be unfinished."""

import dataclasses
import json
import re

import jsonschema
import pydantic
import pytest

from gemworks import LLM
from gemworks.errors import RequestError
from gemworks.text import grammar

QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
}


class Reply(pydantic.BaseModel):
    sum: int = pydantic.Field(ge=0, le=99)
    sure: bool


@dataclasses.dataclass
class Pair:
    left: bool
    right: bool


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny")


def test_a_schema_as_mapping_text_or_model_is_one(llm):
    for schema in (SCHEMA, json.dumps(SCHEMA), Reply):
        answers = llm.chat(QUESTION, schema=schema, temperature=2.0, top_k=0, top_p=1.0, seed=1, n=3, max_tokens=60)
        for answer in answers:
            jsonschema.validate(json.loads(answer.text), SCHEMA)
            told = {"sum": answer.parsed.sum, "sure": answer.parsed.sure} if schema is Reply else answer.parsed
            assert told == json.loads(answer.text)
        assert len({answer.text for answer in answers}) > 1, "each of n answers is followed by itself"


def test_types_that_pydantic_knows(llm):
    assert isinstance(llm.chat(QUESTION, schema=Pair, max_tokens=60).parsed, Pair)
    assert isinstance(llm.chat(QUESTION, schema=bool).parsed, bool)


def test_requests_of_several_forms_and_none_are_answered_together(llm):
    told = {"temperature": 1.0, "seed": 5, "max_tokens": 40}
    forms = [grammar.regex("[0-9]{3}"), grammar.choice(["yes", "no"]), None, grammar.json_schema(SCHEMA)]
    asks = [llm.submit(llm.prepare(QUESTION, grammar=form, **told)) for form in forms]
    together = [ask.last() for ask in asks]
    assert [answer.text for answer in together] == [llm.chat(QUESTION, grammar=f, **told).text for f in forms]
    assert re.fullmatch("[0-9]{3}", together[0].parsed) and together[1].parsed in ("yes", "no")


def test_a_form_the_model_would_take_by_itself_changes_nothing(llm):
    free = llm.chat(QUESTION, temperature=0.0)
    held = llm.chat(QUESTION, temperature=0.0, grammar=grammar.regex(r"[^{}]*"))
    assert held.token_ids == free.token_ids


def test_streamed_is_the_whole(llm):
    *_, last = chunks = list(llm.stream(QUESTION, schema=SCHEMA, seed=2))
    assert "".join(chunk.text for chunk in chunks) == last.completion.text
    assert last.completion.parsed == json.loads(last.completion.text)


def test_half_an_answer_is_no_json(llm):
    cut = llm.chat(QUESTION, schema=SCHEMA, max_tokens=3)
    assert cut.finish_reason == "length"
    with pytest.raises(RequestError, match="unfinished: it ended by length after 3 tokens"):
        _ = cut.parsed
    stopped = llm.chat(QUESTION, schema=SCHEMA, stop="su")
    with pytest.raises(RequestError, match="it ended at the stop text 'su'"):
        _ = stopped.parsed
    with pytest.raises(RequestError, match="this answer is text"):
        _ = llm.chat(QUESTION, max_tokens=3).parsed


def test_a_draft_changes_nothing(llm):
    guessing = LLM("tiny", draft="lookup")
    told = {"schema": {"type": "array", "items": SCHEMA, "minItems": 4, "maxItems": 4}, "temperature": 0.0}
    assert guessing.chat(QUESTION, **told).text == llm.chat(QUESTION, **told).text
    guessing.close()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"schema": {"not": {}}}, 'Unimplemented keys: ["not"]'),
        ({"schema": SCHEMA, "grammar": grammar.Grammar("", "x")}, "give one of them"),
        ({"grammar": "[0-9]"}, "grammar must be a Grammar (gemworks.text.grammar), got str"),
        ({"schema": LLM}, "schema must be a JSON schema or a type that pydantic knows"),
        ({"schema": "{"}, "the schema must be JSON"),
    ],
)
def test_what_is_no_form_is_refused_before_anything_is_computed(llm, told, said):
    before = llm.stats().requests
    with pytest.raises(RequestError, match=re.escape(said)):
        llm.chat(QUESTION, **told)
    assert llm.stats().requests == before
