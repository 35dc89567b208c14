"""tools= of LLM: calls are valid by their schemas, the same streamed and whole, and cut ones are told as that."""

import asyncio
import json
import re

import jsonschema
import pytest

from gemworks import LLM
from gemworks.errors import RequestError
from gemworks.text import grammar

QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]
ADD = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 5},
        "sure": {"type": "boolean"},
    },
    "required": ["a", "sure"],
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD}},
    {"type": "function", "function": {"name": "clock"}},
]
WILD = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "max_tokens": 120, "parallel_tool_calls": False}
NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def llm():
    made = LLM("tiny")
    yield made
    made.close()


@pytest.mark.parametrize(("style", "choice"), [("python", "required"), ("json", NAMED)])
def test_calls_are_valid_by_their_schemas(llm, style, choice):
    answers = llm.chat(QUESTION, tools=TOOLS, tool_choice=choice, tool_style=style, seed=1, n=4, **WILD)
    for answer in answers:
        assert answer.finish_reason == "tool_calls" and answer.text == "" and answer.partial_call is None
        [call] = answer.tool_calls
        assert re.fullmatch("call_[0-9a-f]{24}", call.id) and (call.name == "add" or choice == "required")
        if call.name == "add":
            jsonschema.validate(call.arguments, ADD)
        assert call.told()["function"] == {"name": call.name, "arguments": call.text}
    assert len({call.id for answer in answers for call in answer.tool_calls}) == 4


def assembled(chunks):
    calls = []
    for delta in (delta for chunk in chunks for delta in chunk.calls):
        if delta.id is not None:
            calls.append([delta.id, delta.name, ""])
        calls[delta.index][2] += delta.text
    return calls


@pytest.mark.parametrize("style", ["python", "json"])
def test_streamed_is_the_whole(llm, style):
    told = {"tools": TOOLS, "tool_choice": NAMED, "tool_style": style, "seed": 3, **WILD}
    *_, last = chunks = list(llm.stream(QUESTION, **told))
    whole, made = llm.chat(QUESTION, **told), last.completion
    assert [(call.name, call.text) for call in made.tool_calls] == [(c.name, c.text) for c in whole.tool_calls]
    assert assembled(chunks) == [[call.id, call.name, call.text] for call in made.tool_calls]
    assert len([chunk for chunk in chunks if chunk.calls]) > 2, "pieces come while the call is made"
    assert "".join(chunk.text for chunk in chunks) == made.text == "" and last.finish_reason == "tool_calls"

    async def collect():
        return [chunk async for chunk in llm.astream(QUESTION, **told)]

    assert [one[1:] for one in assembled(asyncio.run(collect()))] == [one[1:] for one in assembled(chunks)]


def test_a_call_that_was_cut_is_no_call(llm):
    told = {"tools": TOOLS, "tool_choice": NAMED, "temperature": 0.0}
    cut = llm.chat(QUESTION, **told, max_tokens=8)
    assert cut.finish_reason == "length" and cut.tool_calls == () and cut.partial_call.name == "add"
    with pytest.raises(ValueError):
        json.loads(cut.partial_call.text)
    assert cut.partial_call.source.startswith("[add(") and cut.message == {"role": "assistant", "content": ""}
    stopped = llm.chat(QUESTION, **told, stop="a=")
    assert stopped.finish_reason == "stop" and stopped.stop_string == "a=" and stopped.partial_call.text == "{"


def test_a_conversation_goes_on_with_results_and_finds_its_prefix(llm):
    talk = list(QUESTION)
    answer = llm.chat(talk, tools=TOOLS, tool_choice=NAMED, seed=5, **WILD)
    talk += [answer.message, {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "7"}]
    prompt = llm.prepare(talk, tools=TOOLS).request.prompt
    before = llm.prepare(QUESTION, tools=TOOLS, tool_choice=NAMED)
    text = llm.tokenizer.decode(prompt, skip_control=False)
    assert "Result of add:\n```tool_output\n7\n```<end_of_turn>\n<start_of_turn>model\n" in text
    both = llm.prepare(QUESTION, tools=TOOLS[:1]).request.prompt
    assert before.request.prompt == both, "a named function is told of alone"
    said = llm.tokenizer.decode(answer.token_ids)
    assert f"<start_of_turn>model\n{said}<end_of_turn>" in text, "a call is told as it was made"


def test_auto_without_a_call_is_the_answer_it_would_have_been(llm):
    """The embedded model knows nothing of calls: its text is the same, only its prompt is longer."""
    prompt = llm.prepare(QUESTION, tools=TOOLS).request.prompt
    free = llm.generate(list(prompt), temperature=0.0, max_tokens=30)
    held = llm.chat(QUESTION, tools=TOOLS, temperature=0.0, max_tokens=30)
    assert (held.text, held.token_ids, held.tool_calls) == (free.text, free.token_ids, ())
    assert held.finish_reason == free.finish_reason
    assert llm.prepare(QUESTION, tools=TOOLS, tool_choice="none").request.prompt == llm.prepare(QUESTION).request.prompt


def test_a_schema_and_tools(llm):
    schema = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    seen = set()
    for answer in llm.chat(QUESTION, tools=TOOLS, schema=schema, seed=1, n=4, **WILD):
        seen.add(answer.finish_reason)
        if answer.finish_reason == "tool_calls":
            with pytest.raises(RequestError, match=r"the answer calls .* and has no value"):
                _ = answer.parsed
        else:
            jsonschema.validate(answer.parsed, schema)
    assert seen <= {"tool_calls", "stop"}
    required = llm.chat(QUESTION, tools=TOOLS, schema=schema, tool_choice="required", seed=1, **WILD)
    assert required.tool_calls


class Box:
    def schemas(self):
        return TOOLS


def test_what_has_schemas_is_a_set_of_tools(llm):
    assert llm.prepare(QUESTION, tools=Box()).request.prompt == llm.prepare(QUESTION, tools=TOOLS).request.prompt


@pytest.mark.parametrize(
    ("prompt", "told", "said"),
    [
        (QUESTION, {"tools": [{}]}, "tools[0] must be"),
        (QUESTION, {"tool_style": "xml"}, "tool_style must be one of python, json, functiongemma"),
        (QUESTION, {"tool_style": "functiongemma"}, "needs FunctionGemma's control tokens"),
        (QUESTION, {"tool_choice": "required"}, "tools declares no function"),
        ("plain", {"tools": TOOLS}, "tools need a conversation"),
        (QUESTION, {"tools": TOOLS, "grammar": grammar.regex("a")}, "not with a grammar"),
        (
            QUESTION,
            {"tools": [{"function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}]},
            "tools[0].function.parameters cannot be followed",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(llm, prompt, told, said):
    before = llm.stats().requests
    with pytest.raises(RequestError, match=re.escape(said)):
        _ = llm.chat(prompt, **told) if prompt is QUESTION else llm.generate(prompt, **told)
    assert llm.stats().requests == before
