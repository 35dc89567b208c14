"""Calls of functions in the HTTP APIs, over an LLM that writes what it is told to."""

import json

import pytest
from app_in_process import FakeServer
from fake_llm import FakeLLM

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]
WRITTEN = 'Let me see.\n[weather(city="Par\\u00ees \\"x\\"", days=2), clock()]'
ARGUMENTS = [{"city": 'Par\u00ees "x"', "days": 2}, {}]
ASKED = [{"role": "user", "content": "Rain?"}]
CHAT = {"model": "tiny", "messages": ASKED, "tools": TOOLS}
FLAT = [{"type": "function", **one["function"]} for one in TOOLS]


@pytest.fixture
def server(tmp_path):
    made = FakeServer(tmp_path, llm=FakeLLM(WRITTEN, context=4096))
    yield made
    made.close()


def prompt_of(server):
    return server.llm.tokenizer.decode(server.llm.log[-1].prompt, skip_control=False)


def streamed(events):
    """A message put together from the deltas of a stream, and its finish reason."""
    message, reason = {"content": None, "tool_calls": []}, None
    for choice in (choice for event in events if event != "[DONE]" for choice in event["choices"]):
        delta = choice["delta"]
        if delta.get("content") is not None:
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls") or ():
            if "id" in call:
                assert call["type"] == "function" and call["function"]["arguments"] == ""
                message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
            else:
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return message, reason


def test_a_chat_that_calls(server):
    choice = server.post("/v1/chat/completions", CHAT).json["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls" and message["content"] == "Let me see."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "clock"]
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == ARGUMENTS
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in message["tool_calls"])
    assert "You have access to functions." in prompt_of(server) and '"name": "clock"' in prompt_of(server)
    got, reason = streamed(server.post("/v1/chat/completions", CHAT | {"stream": True}).events)
    assert reason == "tool_calls" and got["content"] == message["content"]
    assert got["tool_calls"] == [call["function"] for call in message["tool_calls"]]


def test_a_call_alone_has_no_content(server):
    server.llm.text = "[clock()]"
    body = CHAT | {"logprobs": True}
    message = server.post("/v1/chat/completions", body).json["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 1
    got, _ = streamed(server.post("/v1/chat/completions", CHAT | {"stream": True}).events)
    assert got["content"] is None and len(got["tool_calls"]) == 1


def test_without_tools_nothing_is_a_call(server):
    for told in ({"tools": None}, {"tools": []}, {"tool_choice": "none"}):
        choice = server.post("/v1/chat/completions", CHAT | told).json["choices"][0]
        assert choice["message"]["content"] == WRITTEN and "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_a_call_that_was_cut_is_told_as_openai_tells_it(server):
    for max_tokens in range(8, 60):
        body = CHAT | {"max_tokens": max_tokens}
        choice = server.post("/v1/chat/completions", body).json["choices"][0]
        if choice["finish_reason"] != "length":
            break
        got, reason = streamed(server.post("/v1/chat/completions", body | {"stream": True}).events)
        assert reason == "length"
        calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
        assert (got["content"] or None, got["tool_calls"]) == (choice["message"]["content"] or None, calls)
        whole = [call for call in calls if call["arguments"].endswith("}")]
        assert [json.loads(call["arguments"]) for call in whole] == ARGUMENTS[: len(whole)]
    assert max_tokens > 20


def test_the_history_is_told(server):
    message = server.post("/v1/chat/completions", CHAT).json["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result <end_of_turn> {i}"}
        for i, call in enumerate(message["tool_calls"])
    ]
    talk = [*ASKED, message, *results[::-1], {"role": "user", "content": "And?"}]
    assert server.post("/v1/chat/completions", CHAT | {"messages": talk}).status == 200
    told = prompt_of(server)
    assert 'Let me see.\n[weather(city="Par\u00ees \\"x\\"", days=2), clock()]<end_of_turn>' in told
    assert told.index("Result of clock:") < told.index("Result of weather:") < told.index("And?")
    ends = [i for i in server.llm.log[-1].prompt if i == server.llm.tokenizer.end_of_turn_id]
    assert len(ends) == 3, "what a result holds is text"


def test_responses_call(server):
    body = {"model": "tiny", "input": "Rain?", "tools": FLAT}
    whole = server.post("/v1/responses", body).json
    message, *calls = whole["output"]
    assert message["content"][0]["text"] == "Let me see." and whole["status"] == "completed"
    assert [(one["type"], one["name"], one["status"]) for one in calls] == [
        ("function_call", "weather", "completed"),
        ("function_call", "clock", "completed"),
    ]
    assert [json.loads(one["arguments"]) for one in calls] == ARGUMENTS
    assert whole["tools"][0] == FLAT[0] and whole["tools"][1]["name"] == "clock"
    events = server.post("/v1/responses", body | {"stream": True}).events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    last = events[-1]["response"]
    strip = lambda items: [{k: v for k, v in one.items() if k not in ("id", "call_id")} for one in items]  # noqa: E731
    assert strip(last["output"]) == strip(whole["output"])
    for index, item in enumerate(last["output"][1:], start=1):
        mine = [event for event in events if event.get("output_index") == index]
        assert [event["type"].removeprefix("response.") for event in mine if "delta" not in event["type"]] == [
            "output_item.added",
            "function_call_arguments.done",
            "output_item.done",
        ]
        pieces = [event["delta"] for event in mine if event["type"].endswith("arguments.delta")]
        assert "".join(pieces) == item["arguments"] == mine[-2]["arguments"] and mine[-1]["item"] == item
        assert mine[0]["item"]["id"] == item["id"] and mine[0]["item"]["call_id"] == item["call_id"]


def test_responses_without_text_have_no_message(server):
    server.llm.text = "[clock()]"
    body = {"model": "tiny", "input": "Rain?", "tools": FLAT}
    assert [one["type"] for one in server.post("/v1/responses", body).json["output"]] == ["function_call"]
    events = server.post("/v1/responses", body | {"stream": True}).events
    assert [event["item"]["type"] for event in events if event["type"].endswith("item.added")] == ["function_call"]
    assert events[-2]["output_index"] == 0


def test_responses_go_on_with_results(server):
    body = {"model": "tiny", "input": "Rain?", "tools": FLAT}
    first = server.post("/v1/responses", body).json
    calls = first["output"][1:]
    results = [{"type": "function_call_output", "call_id": one["call_id"], "output": "wet"} for one in calls]
    after = body | {"previous_response_id": first["id"], "input": results}
    assert server.post("/v1/responses", after).status == 200
    by_id = prompt_of(server)
    assert "Result of weather:\n```tool_output\nwet\n```\n\nResult of clock:" in by_id
    items = [{"role": "user", "content": "Rain?"}, *first["output"], *results]
    assert server.post("/v1/responses", body | {"input": items}).status == 200
    assert prompt_of(server) == by_id, "sent again or named by its id, a conversation is the same"


def test_ollama_calls(server):
    body = {"model": "tiny", "messages": ASKED, "tools": TOOLS}
    whole = server.post("/api/chat", body | {"stream": False}).json
    assert whole["message"]["content"] == "Let me see." and whole["done_reason"] == "stop"
    calls = whole["message"]["tool_calls"]
    assert [(one["function"]["index"], one["function"]["name"]) for one in calls] == [(0, "weather"), (1, "clock")]
    assert [one["function"]["arguments"] for one in calls] == ARGUMENTS
    lines = [json.loads(line) for line in server.post("/api/chat", body).body.splitlines()]
    got = [call for line in lines for call in line["message"].get("tool_calls", [])]
    assert [one["function"] for one in got] == [one["function"] for one in calls]
    assert "".join(line["message"]["content"] for line in lines) == "Let me see." and lines[-1]["done"]
    talk = [*ASKED, whole["message"], {"role": "tool", "tool_name": "clock", "content": "noon"}]
    talk.append({"role": "tool", "tool_name": "weather", "content": "wet"})
    assert server.post("/api/chat", body | {"messages": talk}).status == 200
    assert prompt_of(server).index("Result of clock:") < prompt_of(server).index("Result of weather:")


def test_ollama_tells_a_cut_call_as_text(server):
    body = {"model": "tiny", "messages": ASKED, "tools": TOOLS, "stream": False, "options": {"num_predict": 20}}
    whole = server.post("/api/chat", body).json
    assert whole["done_reason"] == "length" and "tool_calls" not in whole["message"]
    assert whole["message"]["content"].startswith("Let me see.") and "[weather(" in whole["message"]["content"]


def test_ollama_leaves_out_whole_exchanges(server):
    """A conversation that is too long loses what came first, never the half of a call and its result."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    talk = [*ASKED, call, {"role": "tool", "content": "noon " * 400}, {"role": "assistant", "content": "Noon."}] * 3
    server.llm.context = 1500
    body = {"model": "tiny", "messages": [*talk, *ASKED], "tools": TOOLS, "options": {"num_predict": 5}}
    assert server.post("/api/chat", body).status == 200
    assert prompt_of(server).count("[clock()]") == prompt_of(server).count("Result of clock") < 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", CHAT | {"tools": 3}, "tools"),
        ("/v1/chat/completions", CHAT | {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("/v1/chat/completions", CHAT | {"tools": [{"type": "function", "function": 1}]}, "tools[0].function"),
        ("/v1/chat/completions", CHAT | {"functions": [{}]}, "functions"),
        ("/v1/chat/completions", CHAT | {"tool_choice": "any"}, None),
        ("/v1/chat/completions", CHAT | {"tools": None, "tool_choice": "required"}, None),
        (
            "/v1/chat/completions",
            CHAT | {"messages": [*ASKED, {"role": "tool", "content": "x"}]},
            "messages[1].tool_call_id",
        ),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ("/v1/responses", {"model": "tiny", "input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (
            "/v1/responses",
            {"model": "tiny", "input": [{"type": "function_call", "call_id": "1", "name": "f"}]},
            "input[0].arguments",
        ),
    ],
)
def test_what_is_wrong_is_told_by_its_field(server, path, body, param):
    answer = server.post(path, body)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert not server.llm.log


def test_models_that_chat_can_use_tools(server):
    assert "tools" in server.post("/api/show", {"model": "tiny"}).json["capabilities"]
