"""Whatever is wrong with a body is one 400 in OpenAI's shape that names the field, before anything is computed."""

import pytest
from app_in_process import FakeServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "tiny", "prompt": "Hi"}
INPUT = {"model": "tiny", "input": "Hi"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = FakeServer(tmp_path_factory.mktemp("bodies"))
    yield made
    made.close()


def refused(server, path, body, *, status=400):
    before = len(server.llm.log)
    answer = server.post(path, body)
    assert answer.status == status, answer.body
    assert answer.is_whole
    error = answer.error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] == "invalid_request_error"
    assert len(server.llm.log) == before, "something was computed"
    return error


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b'{"model": -Infinity}',
        b'{"model": "\xff\xfe"}',
        b'{"model": "\\ud800"}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b"\x00",
        b"{'model': 'tiny'}",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_json_object_is_refused(server, path, data):
    assert refused(server, path, data)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 1.5),
        ("top_p", [1]),
        ("n", 0),
        ("n", 1.5),
        ("n", 10**30),
        ("seed", "x"),
        ("seed", 2**80),
        ("stop", 7),
        ("stop", ["a", 7]),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("max_tokens", "many"),
        ("max_tokens", -1),
        ("max_tokens", 1e400),
        ("presence_penalty", 3),
        ("frequency_penalty", {}),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"-1": 1}),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("top_k", -2),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("user", 7),
        ("model", 7),
        ("model", "no-such-model"),
    ],
)
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_a_wrong_value_is_named(server, path, body, field, value):
    text = str({**body, field: value})
    data = {**body, field: value}
    if value == 1e400:
        import json

        data = json.dumps({**body, field: 1}).replace(f'"{field}": 1', f'"{field}": 1e400').encode()
    error = refused(server, path, data, status=404 if value == "no-such-model" else 400)
    assert (error["param"] or "").startswith(field), (text, error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("audio", {"voice": "x", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("store", True),
        ("service_tier", "flex"),
        ("ignore_eos", True),
        ("min_tokens", 5),
        ("best_of", 3),
        ("prompt_logprobs", 1),
        ("priority", 5),
        ("truncate_prompt_tokens", 5),
        ("chat_template", "x"),
        ("continue_final_message", True),
        ("skip_special_tokens", False),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server, field, value):
    error = refused(server, "/v1/chat/completions", {**CHAT, field: value})
    assert (error["code"], error["param"]) == ("unsupported_parameter", field)
    assert field in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),
        ("truncation", "auto"),
        ("reasoning", {"effort": "high"}),
        ("conversation", "conv_1"),
        ("prompt", {"id": "x"}),
        ("tools", [{"type": "web_search"}]),
        ("text", {"verbosity": "low"}),
        ("include", ["file_search_call.results"]),
        ("input", [{"type": "file_search_call", "id": "x"}]),
    ],
)
def test_what_responses_do_not_support_is_refused_by_name(server, field, value):
    error = refused(server, "/v1/responses", {**INPUT, field: value})
    assert error["code"] == "unsupported_parameter"
    assert error["param"].startswith(field)


def test_a_suffix_and_dimensions_are_refused_by_name(server):
    assert refused(server, "/v1/completions", {**TEXT, "suffix": "end"})["param"] == "suffix"
    assert refused(server, "/v1/embeddings", {**INPUT, "dimensions": 3})["param"] == "dimensions"
    assert server.post("/v1/embeddings", {**INPUT, "dimensions": 8}).status == 200  # the model's own


@pytest.mark.parametrize(
    ("path", "body"), list(zip(PATHS, (CHAT, TEXT, INPUT, INPUT, TEXT, {"tokens": [2]}), strict=True))
)
def test_an_unknown_field_is_refused_as_openai_does(server, path, body):
    error = refused(server, path, {**body, "tempreature": 1})
    assert (error["code"], error["param"]) == ("unknown_parameter", "tempreature")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hi", "messages"),
        ([7], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": {"text": "x"}}], "messages[0].content"),
        ([{"role": "user", "content": [7]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "video", "video": "/etc/passwd"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]}], "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
            "messages[0].content[0]",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}],
            "messages[0].content[0]",
        ),
        ([{"role": "narrator", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "function", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "messages[0].name"),
        ([{"role": "user", "content": "x", "colour": 1}], "messages[0].colour"),
        ([{"role": "user", "content": "x", "tool_calls": [{"id": 1}]}], "messages[0].tool_calls"),
    ],
)
def test_a_wrong_message_is_named(server, messages, param):
    assert refused(server, "/v1/chat/completions", {**CHAT, "messages": messages})["param"] == param


def test_messages_that_gemma_cannot_read_are_refused(server):
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert "alternate" in refused(server, "/v1/chat/completions", {**CHAT, "messages": two})["message"]


@pytest.mark.parametrize("prompt", [[], [[]], [["a"]], [1, "a"], 7, None, [1.5], [[1], "a"]])
def test_a_wrong_prompt_is_named(server, prompt):
    assert refused(server, "/v1/completions", {**TEXT, "prompt": prompt})["param"].startswith("prompt")


def test_what_does_not_fit_is_told_as_openai_tells_it(server):
    error = refused(server, "/v1/chat/completions", {**CHAT, "max_tokens": 100_000})
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", PATHS)
def test_a_path_takes_its_method_alone(server, path):
    answer = server.get(path)
    assert answer.status == 405 and answer.error["type"] == "invalid_request_error"
    assert server.get("/v1/no-such-path").status == 404


def test_a_stream_is_refused_before_it_begins(server):
    error = refused(server, "/v1/chat/completions", {**CHAT, "stream": True, "max_tokens": 100_000})
    assert error["code"] == "context_length_exceeded"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("model", "messages", "prompt", "input", "n", "stop", "logit_bias", "stream_options", "max_tokens", "tools")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), body=st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
def test_no_body_is_a_defect_of_the_server(server, path, body):
    answer = server.post(path, body)
    assert answer.status in (200, 400, 404), answer.body
    if answer.status != 200:
        assert set(answer.error) == {"message", "type", "param", "code"}


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", "json"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": 7}}),
        ("guided_choice", []),
        ("guided_choice", [7]),
        ("guided_regex", 7),
        ("structured_outputs", 7),
        ("structured_outputs", {"choice": "a"}),
        ("structured_outputs", {"structural_tag": "a"}),
        ("structured_outputs", {"choice": ["a"], "regex": "b"}),
    ],
)
def test_a_wrong_form_is_named(server, field, value):
    assert refused(server, "/v1/chat/completions", {**CHAT, field: value})["param"].startswith(field)


def test_two_forms_are_refused_and_long_schemas(server):
    two = {"response_format": {"type": "json_object"}, "guided_choice": ["a"]}
    assert "one form" in refused(server, "/v1/chat/completions", CHAT | two)["message"]
    long = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"description": "x" * 70_000}}}
    error = refused(server, "/v1/chat/completions", CHAT | {"response_format": long}, status=413)
    assert error["param"] == "response_format"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        ),
        ("/v1/responses", INPUT | {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}}),
        ("/v1/chat/completions", CHAT | {"guided_json": SCHEMA}),
        ("/v1/completions", TEXT | {"structured_outputs": {"json": SCHEMA}}),
    ],
)
def test_a_form_reaches_the_model(server, path, body):
    assert server.post(path, body).status == 200
    assert server.llm.forms[-1]["schema"] == SCHEMA
    assert server.post(path, body | {"stream": True}).status == 200
