"""What a form is refused with names the field that it came in, as OpenAI's errors do."""

import pytest
from app_in_process import FakeServer

from gemworks.server.run import see_once

BAD = {"type": "array", "uniqueItems": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = FakeServer(tmp_path_factory.mktemp("forms"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("told", "param", "said"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": BAD}}},
            "response_format",
            'Unimplemented keys: ["uniqueItems"]',
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema", "schema"),
        ({"guided_json": BAD}, "guided_json", "uniqueItems"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "look-ahead"),
        ({"guided_grammar": "start"}, "guided_grammar", "cannot be followed"),
        ({"structured_outputs": {"json": BAD}}, "structured_outputs.json", "uniqueItems"),
    ],
)
def test_a_chat_names_the_field_of_a_form_it_cannot_keep(server, told, param, said):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **told}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 400, answer.body
    assert answer.error["param"] == param and said in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"


def test_a_response_names_its_schema(server):
    body = {"model": "tiny", "input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": BAD}}}
    answer = server.post("/v1/responses", body)
    assert (answer.status, answer.error["param"]) == (400, "text.format.schema")


def test_a_schema_that_can_be_kept_passes(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    told = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    answer = server.post(
        "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} | told
    )
    assert answer.status == 200
    assert server.llm.forms[-1]["schema"] == schema


class Seeing:
    """An LLM as far as `see_once` knows it."""

    def __init__(self, context, tokens=4):
        self.context, self.asked = context, []
        self.eyes = (
            type("Eyes", (), {"config": type("Config", (), {"tokens_per_image": tokens})()})() if tokens else None
        )

    def chat(self, messages, **told):
        self.asked.append((messages, told))


@pytest.mark.parametrize(("context", "tokens", "count"), [(512, 4, 1), (512, 256, 1), (300, 256, 0), (512, 0, 0)])
def test_models_with_eyes_look_once_before_anybody_asks(context, tokens, count):
    llm = Seeing(context, tokens)
    see_once(llm)
    assert len(llm.asked) == count
    if count:
        [(messages, told)] = llm.asked
        image, text = messages[0]["content"]
        assert image["type"] == "image" and text["type"] == "text" and told["max_tokens"] == 1
