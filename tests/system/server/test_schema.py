"""Requests that nobody thought of: what schemathesis makes of our OpenAPI document, and valid bodies with new parts.

Every answer has a status that is not the server's fault, and an error has the shape of the API that was asked. Paths
that fetch or change models are left out: they would, where a name were guessed.
"""

import contextlib
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NOT_ASKED = r"^/api/(pull|push|create|copy|delete|blobs)"
FINE = {200, 400, 404, 405, 413, 415, 422, 429, 503}

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"model": "tiny", "prompt": "Hello", "max_tokens": 2},
    "/v1/responses": {"model": "tiny", "input": "Hello", "max_output_tokens": 16},
    "/v1/embeddings": {"model": "tiny", "input": "Hello"},
    "/tokenize": {"model": "tiny", "prompt": "Hello"},
    "/detokenize": {"model": "tiny", "tokens": [300]},
    "/api/chat": {"model": "tiny", "messages": MESSAGES, "options": {"num_predict": 2}},
    "/api/generate": {"model": "tiny", "prompt": "Hello", "options": {"num_predict": 2}},
    "/api/embed": {"model": "tiny", "input": "Hello"},
    "/api/show": {"model": "tiny"},
}
NAMES = [
    "model",
    "messages",
    "prompt",
    "input",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
]
NAMES += [
    "top_k",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "max_tokens",
    "tools",
    "response_format",
    "format",
    "options",
]
NAMES += ["keep_alive", "images", "echo", "suffix", "user", "role", "content", "context", "raw", "template", "zzz"]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["tiny", ""])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def nearly_valid(draw, path: str) -> dict[str, Any]:
    """A valid body with up to three fields, some of them a level down, replaced by anything."""
    body = json.loads(json.dumps(BODIES[path]))
    for _ in range(draw(st.integers(1, 3))):
        where = body
        if (inner := [value for value in body.values() if isinstance(value, dict)]) and draw(st.booleans()):
            where = draw(st.sampled_from(inner))
        if isinstance(body.get("messages"), list) and body["messages"] and draw(st.booleans()):
            first = body["messages"][0]
            where = first if isinstance(first, dict) else where
        where[draw(st.sampled_from([*where, *NAMES]))] = draw(anything)
    return body


def post(url: str, path: str, body: Any) -> tuple[int, str, bytes]:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.headers.get("content-type", ""), response.read()


def wrong_with(path: str, status: int, answer: bytes) -> str | None:
    """What is wrong with an answer: a status that is none of a request's fault, or an error in another API's shape."""
    if status not in FINE:
        return f"status {status}: {answer[:300]!r}"
    if status == 200:
        return None
    error = json.loads(answer).get("error")
    if path.startswith("/api/"):
        return None if isinstance(error, str) and error else f"no Ollama error: {answer[:300]!r}"
    is_shape = isinstance(error, dict) and {"message", "type", "param", "code"} <= set(error) and error["message"]
    return None if is_shape else f"no OpenAI error: {answer[:300]!r}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", BODIES)
def test_nearly_valid_bodies_are_answered_or_refused(path, server):
    assert post(server.url, path, BODIES[path])[0] == 200

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(nearly_valid(path))
    def check(body):
        status, _, answer = post(server.url, path, body)
        assert wrong_with(path, status, answer) is None

    check()


@pytest.mark.exhaustive
def test_what_the_openapi_document_allows_is_answered(server):
    """schemathesis draws requests from the document, right ones and wrong ones, for every path."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json").exclude(path_regex=NOT_ASKED)
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy() | wrong)
        def check(case):
            response = case.call(timeout=120)
            asked.add(case.operation.path)
            told = f"{case.method} {case.path}: {response.status_code} {response.text:.300}"
            assert response.status_code in FINE, told

        check()
    assert set(BODIES) <= asked


def test_a_wrong_shape_is_noticed():
    assert wrong_with("/v1/models", 500, b"{}") == "status 500: b'{}'"
    assert wrong_with("/v1/models", 404, b'{"detail": "x"}') is not None
    assert wrong_with("/v1/models", 404, b'{"error": "x"}') is not None
    assert wrong_with("/api/chat", 404, b'{"error": {"message": "x"}}') is not None
    assert wrong_with("/api/chat", 404, b'{"error": "no such model"}') is None
