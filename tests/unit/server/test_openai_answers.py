"""Answers of the OpenAI API over an LLM that says what it is told to."""

import base64
import struct

import pytest
from app_in_process import FakeServer
from fake_llm import FakeLLM

from gemworks.errors import RequestError
from gemworks.server.openai.logprobs import TokenLogprobs
from gemworks.server.openai.stored import ResponseStore, Stored

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def server(tmp_path):
    made = FakeServer(tmp_path, llm=FakeLLM("Hello there, friend. \u00e9\u4e2d"))
    yield made
    made.close()


def test_a_chat_is_answered_whole(server):
    server.llm.cached_tokens = 3
    answer = server.post("/v1/chat/completions", CHAT, x_request_id="mine-1")
    assert answer.status == 200 and answer.headers["x-request-id"] == "mine-1"
    [choice] = answer.json["choices"]
    assert choice["message"]["content"] == server.llm.text
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    usage = answer.json["usage"]
    assert usage["prompt_tokens"] == len(server.llm.log[0].prompt)
    assert usage["completion_tokens"] == len(server.llm.tokenizer.encode(server.llm.text))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}


def test_a_stream_adds_up_to_the_whole(server):
    body = CHAT | {"stream": True, "n": 2, "stream_options": {"include_usage": True}, "logprobs": True}
    events = server.post("/v1/chat/completions", body).events
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 2 * len(
        server.llm.tokenizer.encode(server.llm.text)
    )
    assert {event["id"] for event in events[:-1]} == {events[0]["id"]}
    for index in (0, 1):
        mine = [c for event in events[:-2] for c in event["choices"] if c["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content") or "" for c in mine) == server.llm.text
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"] == [mine[-1]["finish_reason"]]
        data = [bytes(one["bytes"]) for c in mine for one in (c["logprobs"] or {"content": []})["content"]]
        assert b"".join(data).decode() == server.llm.text
    assert all(event["usage"] is None for event in events[:-2])


def test_sampling_reaches_the_engine(server):
    body = CHAT | {
        "temperature": 0.5,
        "top_p": 0,
        "n": 3,
        "seed": -1,
        "stop": ["x", "y"],
        "max_completion_tokens": 7,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "logit_bias": {"5": -100, "7": 3},
        "logprobs": True,
        "top_logprobs": 4,
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "stop_token_ids": [9],
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "tool_choice": "auto",
        "response_format": {"type": "text"},
    }
    assert server.post("/v1/chat/completions", body).status == 200
    [request] = server.llm.log
    params = request.params
    assert (params.temperature, params.max_tokens, params.top_k, params.min_p) == (0.5, 7, 0, 0.1)
    assert 0 < params.top_p < 1e-3 and params.seed == 2**63 - 1 and request.n == 3
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1.5, 1.2)
    assert dict(params.logit_bias) == {5: -100, 7: 3} and 9 in params.stop_ids
    assert (params.logprobs, params.top_logprobs) == (True, 4)


def test_nothing_said_is_the_models_own(server):
    server.post("/v1/chat/completions", CHAT | {"temperature": None, "top_p": None, "max_tokens": None, "stop": None})
    assert server.llm.log[0].params == server.llm.sampling()


def test_a_cut_answer_says_so(server):
    answer = server.post("/v1/chat/completions", CHAT | {"max_tokens": 2})
    assert answer.json["choices"][0]["finish_reason"] == "length"
    answer = server.post("/v1/chat/completions", CHAT | {"stop": "friend"})
    assert answer.json["choices"][0]["message"]["content"] == "Hello there, "
    assert answer.json["choices"][0]["finish_reason"] == "stop"


def test_system_messages_and_parts_are_rendered(server):
    parts = [{"type": "text", "text": "Hi"}]
    server.post(
        "/v1/chat/completions",
        {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]},
    )
    assert server.llm.tokenizer.decode(server.llm.log[0].prompt) == "user\nBe brief.\n\nHi\nmodel\n"


def test_an_error_amid_a_stream_is_its_last_event(server):
    server.llm.fail_after = 3, RequestError("that went wrong.")
    answer = server.post("/v1/chat/completions", CHAT | {"stream": True})
    assert answer.status == 200 and answer.is_whole
    assert answer.events[-1] == {
        "error": {"message": "that went wrong.", "type": "invalid_request_error", "param": None, "code": None}
    }
    assert server.post("/v1/chat/completions", CHAT).status == 400


def test_a_defect_is_told_without_its_text(server):
    server.llm.fail_after = 3, RuntimeError("the prompt was: secret")
    answer = server.post("/v1/chat/completions", CHAT | {"stream": True}, x_request_id="r-1")
    told = answer.events[-1]["error"]
    assert "secret" not in answer.body.decode() and "r-1" in told["message"] and told["type"] == "server_error"
    answer = server.post("/v1/chat/completions", CHAT, x_request_id="r-2")
    assert answer.status == 500 and "secret" not in answer.body.decode() and "r-2" in answer.error["message"]


# -- completions -----------------------------------------------------------------------------------------------------


def test_prompts_of_a_list_are_answered_in_order(server):
    answer = server.post("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 3})
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2, 3]
    assert [request.n for request in server.llm.log] == [2, 2]
    assert answer.json["usage"]["completion_tokens"] == 12
    assert answer.json["usage"]["prompt_tokens"] == sum(len(request.prompt) for request in server.llm.log)


def test_token_ids_are_taken_as_they_are(server):
    server.post("/v1/completions", {"prompt": [2, 100, 101], "max_tokens": 1})
    server.post("/v1/completions", {"prompt": [[2, 5], [7]], "max_tokens": 1})
    assert [request.prompt for request in server.llm.log] == [(2, 100, 101), (2, 5), (7,)]


def test_sixteen_tokens_are_drawn_where_nobody_says(server):
    server.llm.text, server.llm.cached_tokens = "word " * 50, 2
    answer = server.post("/v1/completions", {"prompt": "a"})
    assert answer.json["usage"]["completion_tokens"] == 16
    assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    answer = server.post("/v1/completions", {"prompt": ["a", "b"], "n": 3, "echo": True, "logprobs": 1})
    assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 4  # once a prompt, not once an answer


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_echo_tells_the_prompt_and_its_logprobs(server, max_tokens, stream):
    body = {"prompt": "Hi there", "echo": True, "logprobs": 2, "max_tokens": max_tokens, "stream": stream}
    answer = server.post("/v1/completions", body)
    assert answer.status == 200
    choices = [c for event in answer.events[:-1] for c in event["choices"]] if stream else answer.json["choices"]
    text = "".join(choice["text"] for choice in choices)
    drawn = server.llm.tokenizer.encode(server.llm.text)[:max_tokens]
    assert text == "Hi there" + server.llm.tokenizer.decode(drawn)
    ids = [2, *server.llm.tokenizer.encode("Hi there")]
    told = {name: [one for c in choices if c["logprobs"] for one in c["logprobs"][name]] for name in NAMES}
    assert len(told["tokens"]) == len(ids) + max_tokens
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx([-0.01 * i for i in range(1, len(ids))])
    assert told["tokens"][0] == "<bos>" and "".join(told["tokens"][1:]) == text
    for token, offset in list(zip(told["tokens"], told["text_offset"], strict=True))[1:]:
        assert text[offset:].startswith(token)
    assert choices[-1]["finish_reason"] == "length"
    kinds = [request.kind for request in server.llm.log]
    assert kinds == (["score", "generate"] if max_tokens else ["score"])


NAMES = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def test_the_token_that_ends_an_echoed_answer_has_a_place(server):
    """A harness cuts off the last entry: it must never be the prompt's."""
    body = {"prompt": "Hi", "echo": True, "logprobs": 1, "max_tokens": 100}
    [choice] = server.post("/v1/completions", body).json["choices"]
    told, ids = choice["logprobs"], server.llm.tokenizer.encode("Hi" + server.llm.text)
    assert choice["finish_reason"] == "stop"
    assert (told["tokens"][-1], told["token_logprobs"][-1], told["top_logprobs"][-1]) == ("", None, None)
    assert len(told["tokens"]) == 1 + len(ids) + 1
    [choice] = server.post("/v1/completions", body | {"stop": "friend"}).json["choices"]
    assert choice["logprobs"]["tokens"][-1] != ""
    [choice] = server.post("/v1/completions", body | {"echo": False}).json["choices"]
    assert choice["logprobs"]["tokens"][-1] != ""


def test_half_characters_have_their_bytes(server):
    tokenizer = server.llm.tokenizer
    ids = tokenizer.encode("\U0001f600x")
    from gemworks.engine.types import TokenLogprob

    told = TokenLogprobs(tokenizer, ids=ids)
    told.echo([TokenLogprob(token_id, -1.0) for token_id in ids])
    made = told.take()
    assert made["tokens"][:4] == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80"]
    assert made["text_offset"][:5] == [0, 0, 0, 0, 1]


# -- embeddings, tokens, models ----------------------------------------------------------------------------------------


def test_embeddings_have_length_one_in_both_forms(server):
    body = {"model": "tiny", "input": [[2, 9], [2, 5, 6]]}
    plain = server.post("/v1/embeddings", body).json
    packed = server.post("/v1/embeddings", body | {"encoding_format": "base64"}).json
    for one, other in zip(plain["data"], packed["data"], strict=True):
        data = base64.b64decode(other["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == one["embedding"]
        assert sum(value**2 for value in one["embedding"]) == pytest.approx(1)
    assert plain["usage"]["prompt_tokens"] == sum(len(request.prompt) for request in server.llm.log[:2])


def test_tokens_go_there_and_back(server):
    made = server.post("/tokenize", {"prompt": "Hi <end_of_turn>", "return_token_strs": True}).json
    assert made["tokens"][0] == 2 and made["count"] == len(made["tokens"]) == len(made["token_strs"])
    assert server.post("/detokenize", {"tokens": made["tokens"][1:]}).json["prompt"] == "Hi <end_of_turn>"
    bare = server.post("/tokenize", {"prompt": "Hi", "add_special_tokens": False}).json["tokens"]
    assert server.post("/tokenize", {"prompt": "Hi"}).json["tokens"] == [2, *bare]
    chat = server.post("/tokenize", {"messages": CHAT["messages"]}).json["tokens"]
    server.post("/v1/chat/completions", CHAT)
    assert tuple(chat) == server.llm.log[-1].prompt
    assert server.post("/detokenize", {"tokens": [10**9]}).status == 400


def test_models_tell_what_is_served(server):
    [one] = server.get("/v1/models").json["data"]
    assert one["id"] == "tiny" and "max_model_len" not in one
    server.post("/v1/chat/completions", CHAT)
    assert server.get("/v1/models/tiny").json["max_model_len"] == server.llm.context
    assert server.get("/v1/models/none").status == 404


def test_the_document_has_every_path_and_its_body(server):
    document = server.get("/openapi.json").json
    paths = document["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["additionalProperties"] is False
    assert "StreamOptions" in document["components"]["schemas"]


# -- responses -------------------------------------------------------------------------------------------------------


def test_a_response_continues_by_id(server):
    first = server.post("/v1/responses", {"input": "One?", "instructions": "Be kind."}).json
    second = server.post("/v1/responses", {"input": "Two?", "previous_response_id": first["id"]}).json
    assert second["output"][0]["content"][0]["text"] == server.llm.text
    said = server.llm.tokenizer.decode(server.llm.log[-1].prompt)
    assert (
        said == f"user\nOne?\nmodel\n{server.llm.text}\nuser\nTwo?\nmodel\n"
    )  # instructions are the first one's alone
    assert server.get(f"/v1/responses/{second['id']}").json == second
    items = server.get(f"/v1/responses/{second['id']}/input_items").json
    assert [item["content"][0]["text"] for item in items["data"]] == ["Two?"]
    assert server.run(server.ask("DELETE", f"/v1/responses/{first['id']}")).json["deleted"] is True
    assert server.get(f"/v1/responses/{first['id']}").status == 404
    gone = server.post("/v1/responses", {"input": "x", "previous_response_id": first["id"]})
    assert gone.status == 400 and gone.error["code"] == "previous_response_not_found"


def test_what_is_not_stored_cannot_be_continued(server):
    made = server.post("/v1/responses", {"input": "x", "store": False}).json
    assert server.get(f"/v1/responses/{made['id']}").status == 404


def test_events_of_a_response_are_numbered_and_add_up(server):
    events = server.post("/v1/responses", {"input": "x", "stream": True}).events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == server.llm.text
    whole = events[-1]["response"]
    assert server.get(f"/v1/responses/{whole['id']}").json == whole
    assert whole["usage"]["output_tokens"] == len(server.llm.tokenizer.encode(server.llm.text))


def test_a_response_that_is_cut_or_fails_says_so(server):
    cut = server.post("/v1/responses", {"input": "x", "max_output_tokens": 2, "stream": True}).events[-1]
    assert cut["type"] == "response.incomplete"
    assert cut["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    server.llm.fail_after = 2, RequestError("no.")
    events = server.post("/v1/responses", {"input": "x", "stream": True}).events
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"]["message"] == "no."
    assert server.get(f"/v1/responses/{events[-1]['response']['id']}").status == 404


def test_input_items_are_messages(server):
    items = [
        {"role": "developer", "content": "Short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "A?"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "B.", "annotations": []}],
        },
        {"role": "user", "content": "C?"},
    ]
    server.post("/v1/responses", {"input": items, "instructions": "Kind."})
    said = server.llm.tokenizer.decode(server.llm.log[-1].prompt)
    assert said == "user\nKind.\n\nShort.\n\nA?\nmodel\nB.\nuser\nC?\nmodel\n"


def test_the_oldest_responses_make_room_and_keys_do_not_see_each_other():
    store = ResponseStore(most=2, most_bytes=10_000)
    for i in range(3):
        store.add(Stored("ann", {"id": f"r{i}", "output": []}, [], []))
    with pytest.raises(RequestError):
        store.get("r0", "ann")
    assert store.get("r1", "ann").owner == "ann"
    with pytest.raises(RequestError):
        store.get("r1", "bob")
    store.add(Stored("ann", {"id": "r3", "output": ["x" * 20_000]}, [], []))  # r2 and r1 go for its bytes
    with pytest.raises(RequestError):
        store.get("r1", "ann")
    assert store.get("r3", "ann")
