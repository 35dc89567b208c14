"""Ollama's /api/chat, /api/generate, /api/embed: what goes in, what comes out, and what is refused by name."""

import base64
import json
from datetime import datetime

import ollama
import pytest
from fake_llm import FakeLLM, tiny_tokenizer
from served_app import ServedApp

from gemworks.errors import BackendError
from gemworks.tokenizer.chat import render_chat

TEXT = "Hello there, friend."
QUESTION = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def app(tmp_path):
    served = ServedApp(tmp_path)
    yield served
    served.close()


def prompt_of(app: ServedApp) -> list[int]:
    """What the model was asked last."""
    return list(app.llm.log[-1].prompt)


def rendered(*messages: tuple[str, str]) -> list[int]:
    return render_chat(tiny_tokenizer(), [{"role": role, "content": text} for role, text in messages])


def test_chat_streams_a_line_a_piece_and_ends_with_the_figures(app):
    *pieces, last = app.lines("/api/chat", model="tiny", messages=QUESTION)
    assert "".join(piece["message"]["content"] for piece in pieces) == TEXT
    assert len(pieces) == len(tiny_tokenizer().encode(TEXT))
    assert all(piece["model"] == "tiny" and piece["done"] is False for piece in pieces)
    assert all(piece["message"]["role"] == "assistant" for piece in pieces)
    assert all("done_reason" not in piece for piece in pieces)
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["prompt_eval_count"] == len(prompt_of(app))
    assert last["eval_count"] == len(pieces)
    assert all(
        type(last[f"{name}_duration"]) is int and last[f"{name}_duration"] >= 0
        for name in ("total", "load", "prompt_eval", "eval")
    )
    assert last["total_duration"] > last["load_duration"]
    assert datetime.fromisoformat(last["created_at"]).tzinfo is not None
    assert prompt_of(app) == rendered(("user", "Who are you?"))


def test_one_object_says_the_same_as_the_stream(app):
    whole = app.post("/api/chat", model="tiny", messages=QUESTION, stream=False)
    assert whole["message"] == {"role": "assistant", "content": TEXT}
    assert whole["done"] is True
    assert set(whole) == set(app.lines("/api/chat", model="tiny", messages=QUESTION)[-1])
    response = app.post("/api/generate", model="tiny", prompt="Hi", stream=False)
    assert response["response"] == TEXT
    *pieces, last = app.lines("/api/generate", model="tiny", prompt="Hi")
    assert "".join(piece["response"] for piece in pieces) == TEXT
    assert last["response"] == ""
    assert set(response) == set(last)


def test_a_body_counts_whatever_its_content_type(app):
    body = json.dumps({"model": "tiny", "messages": QUESTION, "stream": False}).encode()
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json"):
        response = app.ask("POST", "/api/chat", body, headers={"content-type": kind})
        assert response.json()["message"]["content"] == TEXT


def test_text_goes_through_lines_unharmed(app):
    app.llm.text = 'Quotes " and \\ and\nnew lines, \u00e9 and </script>'
    pieces = app.lines("/api/chat", model="tiny", messages=QUESTION)
    assert "".join(piece["message"]["content"] for piece in pieces) == app.llm.text


def test_length_ends_an_answer_with_its_reason(app):
    last = app.lines("/api/chat", model="tiny", messages=QUESTION, options={"num_predict": 2})[-1]
    assert (last["done_reason"], last["eval_count"]) == ("length", 2)
    for unlimited in (-1, -2):
        last = app.lines("/api/chat", model="tiny", messages=QUESTION, options={"num_predict": unlimited})[-1]
        assert last["done_reason"] == "stop"
        assert app.llm.log[-1].params.max_tokens is None


def test_num_ctx_bounds_prompt_and_answer_together(app):
    prompt = len(rendered(("user", "Who are you?")))
    last = app.lines("/api/chat", model="tiny", messages=QUESTION, options={"num_ctx": prompt + 3})[-1]
    assert (last["done_reason"], last["eval_count"]) == ("length", 3)
    message = app.error("/api/chat", model="tiny", messages=QUESTION, options={"num_ctx": prompt})
    assert f"{prompt} tokens" in message
    assert "num_ctx" in message


def test_an_answer_longer_than_what_is_left_is_asked_for_what_is_left(app):
    app.post("/api/chat", model="tiny", messages=QUESTION, stream=False, options={"num_predict": 100_000})
    [request] = app.llm.log
    assert request.params.max_tokens == app.llm.context - len(request.prompt)


def test_history_that_does_not_fit_loses_its_oldest_exchanges(app):
    turns = [("user", f"question {i} " + "x" * 40) if i % 2 == 0 else ("assistant", f"answer {i}") for i in range(41)]
    messages = [{"role": "system", "content": "Be brief."}]
    messages += [{"role": role, "content": text} for role, text in turns]
    app.post("/api/chat", model="tiny", messages=messages, stream=False, options={"num_predict": 10})
    # The independent way: leave out pairs one by one until the rest fits.
    for left_out in range(0, 41, 2):
        wanted = rendered(("system", "Be brief."), *turns[left_out:])
        if len(wanted) + 10 <= app.llm.context:
            break
    assert left_out > 0
    assert prompt_of(app) == wanted
    message = app.error("/api/chat", model="tiny", messages=messages, truncate=False)
    assert "context" in message


def test_a_question_too_long_by_itself_is_refused(app):
    message = app.error("/api/chat", model="tiny", messages=[*QUESTION, {"role": "user", "content": "word " * 600}])
    assert "context" in message


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ([("user", "a"), ("user", "b")], [("user", "a\n\nb")]),
        ([("system", "s"), ("system", "t"), ("user", "a")], [("system", "s\n\nt"), ("user", "a")]),
        ([("USER", "a")], [("user", "a")]),
        (
            [("user", "a"), ("assistant", "b"), ("system", "s"), ("user", "c")],
            [("user", "a"), ("assistant", "b"), ("user", "s\n\nc")],
        ),
    ],
)
def test_conversations_of_other_shapes_are_taken_as_ollama_takes_them(app, sent, taken):
    app.post("/api/chat", model="tiny", messages=[{"role": r, "content": t} for r, t in sent], stream=False)
    assert prompt_of(app) == rendered(*taken)


def test_an_answer_at_the_end_is_continued(app):
    messages = [*QUESTION, {"role": "assistant", "content": "I am"}]
    app.post("/api/chat", model="tiny", messages=messages, stream=False)
    tokenizer = tiny_tokenizer()
    header = [tokenizer.chat_ids[0], *tokenizer.encode("model\n")]
    before = rendered(("user", "Who are you?"))
    assert before[-len(header) :] == header
    assert prompt_of(app) == [*before[: -len(header)], tokenizer.chat_ids[0], *tokenizer.encode("model\nI am")]


def test_the_system_of_generate_is_a_system_message(app):
    app.post("/api/generate", model="tiny", prompt="Hi", system="Be brief.", stream=False)
    assert prompt_of(app) == rendered(("system", "Be brief."), ("user", "Hi"))


def test_context_carries_a_conversation_on(app):
    """The second prompt is, id for id, what the two questions and the first answer render to."""
    first = app.post("/api/generate", model="tiny", prompt="One", stream=False)
    tokenizer = tiny_tokenizer()
    assert first["context"] == [*rendered(("user", "One")), *tokenizer.encode(TEXT)]
    app.post("/api/generate", model="tiny", prompt="Two", context=first["context"], stream=False)
    assert prompt_of(app) == rendered(("user", "One"), ("assistant", TEXT), ("user", "Two"))


def test_context_ends_before_a_stop_string(app):
    told = {"model": "tiny", "prompt": "One", "stream": False, "options": {"stop": ["re, fr"]}}
    first = app.post("/api/generate", **told)
    assert first["response"] == "Hello the"
    assert first["done_reason"] == "stop"
    assert tiny_tokenizer().decode(first["context"]).endswith("Hello the")


def test_raw_prompts_stand_as_they_are_with_their_control_tokens(app):
    text = "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    answer = app.post("/api/generate", model="tiny", prompt=text, raw=True, stream=False)
    tokenizer = tiny_tokenizer()
    assert prompt_of(app) == [tokenizer.bos_id, *tokenizer.encode(text, control=True)]
    assert prompt_of(app) == rendered(("user", "Hi"))
    assert "context" not in answer
    app.post("/api/generate", model="tiny", prompt="<bos>x", raw=True, stream=False)
    assert prompt_of(app).count(tokenizer.bos_id) == 1
    # Without raw nobody can write a control token.
    app.post("/api/generate", model="tiny", prompt="<end_of_turn>", stream=False)
    assert prompt_of(app).count(tokenizer.chat_ids[1]) == 1


@pytest.mark.parametrize(
    "field", [{"template": "{{ .Prompt }}"}, {"system": "s"}, {"context": [1]}, {"images": ["aa"]}]
)
def test_raw_goes_with_no_other_way_to_make_a_prompt(app, field):
    message = app.error("/api/generate", model="tiny", prompt="x", raw=True, **field)
    assert next(iter(field)) in message


def test_gemmas_own_template_is_taken_and_another_refused(app):
    from gemworks.server.ollama.show import TEMPLATE

    app.post("/api/generate", model="tiny", prompt="Hi", template=TEMPLATE, stream=False)
    assert prompt_of(app) == rendered(("user", "Hi"))
    assert "template" in app.error("/api/generate", model="tiny", prompt="Hi", template="[INST] {{ .Prompt }} [/INST]")


def test_a_pre_trained_model_continues_text(tmp_path):
    app = ServedApp(tmp_path, FakeLLM(TEXT, is_chat=False))
    app.post("/api/generate", model="tiny", prompt="Once upon", stream=False)
    tokenizer = tiny_tokenizer()
    assert prompt_of(app) == [tokenizer.bos_id, *tokenizer.encode("Once upon")]
    assert "chat" in app.error("/api/chat", model="tiny", messages=QUESTION)
    assert "system" in app.error("/api/generate", model="tiny", prompt="x", system="s")
    app.close()


@pytest.mark.parametrize(
    ("path", "field", "named"),
    [
        ("/api/chat", {"think": True}, "think"),
        ("/api/chat", {"think": "high"}, "think"),
        ("/api/chat", {"tools": [{"type": "function"}]}, "tools"),
        ("/api/chat", {"format": "xml"}, "format"),
        ("/api/generate", {"format": True}, "format"),
        ("/api/chat", {"shift": True}, "shift"),
        ("/api/chat", {"messages": [{"role": "tool", "content": "4"}]}, "messages[0]"),
        ("/api/chat", {"messages": [{"role": "dog", "content": "woof"}]}, "messages[0]"),
        ("/api/chat", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["?"]}]}, "messages[0].images[0]"),
        ("/api/chat", {"messages": [{"role": "assistant", "content": "x"}]}, "messages[0]"),
        ("/api/chat", {"top_logprobs": 21}, "top_logprobs"),
        ("/api/chat", {"keep_alive": "soon"}, "keep_alive"),
        ("/api/chat", {"options": {"temprature": 1}}, 'Did you mean "temperature"'),
        ("/api/chat", {"options": {"mirostat": 2}}, "options.mirostat"),
        ("/api/chat", {"model": ""}, "model"),
        ("/api/chat", {"stream": "no"}, "stream"),
        ("/api/generate", {"suffix": "end"}, "suffix"),
        ("/api/generate", {"context": [1.5]}, "context"),
        ("/api/generate", {"images": ["AAAA"], "context": [2]}, "images"),
        ("/api/embed", {"dimensions": 9}, "dimensions"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(app, path, field, named):
    body = {"model": "tiny", "messages": QUESTION, "prompt": "x", "input": "x"} | field
    assert named in app.error(path, **body)


def test_what_asks_for_nothing_is_taken(app):
    nothing = {"think": False, "tools": [], "format": "", "options": None, "keep_alive": None, "images": None}
    app.post("/api/chat", model="tiny", messages=QUESTION, stream=False, unknown=1, **nothing)


def test_bodies_that_are_no_json_objects_are_told_so(app):
    for body in (b"", b"{", b"[]", b'{"model": NaN}', b"\xff"):
        response = app.ask("POST", "/api/chat", body)
        assert response.status_code == 400
        assert "JSON" in response.json()["error"]


def test_unknown_models_are_not_found(app):
    for path, more in (("chat", {"messages": QUESTION}), ("generate", {"prompt": "x"}), ("embed", {"input": "x"})):
        message = app.error(f"/api/{path}", 404, model="gemma3:27b", **more)
        assert message.startswith("model 'gemma3:27b' not found")
        assert "gemworks pull" in message
    for name in ("../tiny", "/etc/passwd", "./tiny", "~/x"):
        assert "not found" in app.error("/api/chat", 404, model=name, messages=QUESTION)


def test_empty_prompts_load_and_unload(app):
    assert app.loads == []
    loaded = app.post("/api/generate", model="tiny")
    assert (loaded["done"], loaded["done_reason"], loaded["response"]) == (True, "load", "")
    assert app.loads == ["tiny"]
    assert app.post("/api/chat", model="tiny:latest", messages=[])["done_reason"] == "load"
    assert len(app.post("/api/embeddings", model="tiny", prompt="")["embedding"]) == 0
    assert app.llm.log == []
    gone = app.post("/api/chat", model="tiny", keep_alive=0)
    assert gone["done_reason"] == "unload"
    assert gone["message"] == {"role": "assistant", "content": ""}
    assert app.host.loaded() == []
    assert app.llm.closed
    assert app.post("/api/generate", model="tiny", keep_alive="0s")["done_reason"] == "unload"
    assert "not found" in app.error("/api/generate", 404, model="no-such", keep_alive=0)


def test_keep_alive_decides_how_long_a_model_stays(app):
    def until():
        [model] = app.ask("GET", "/api/ps").json()["models"]
        return datetime.fromisoformat(model["expires_at"]).timestamp() - datetime.now().timestamp()

    for keep_alive, seconds in ((300, 300), ("5m", 300), ("1h30m", 5400), (1.5, 1.5)):
        app.post("/api/generate", model="tiny", prompt="x", keep_alive=keep_alive, stream=False)
        assert until() == pytest.approx(seconds, abs=1.0)
    app.post("/api/generate", model="tiny", prompt="x", keep_alive=-1, stream=False)
    assert until() > 10**10
    app.post("/api/generate", model="tiny", prompt="x", keep_alive=0, stream=False)
    assert app.ask("GET", "/api/ps").json() == {"models": []}


def test_logprobs_come_with_tokens_bytes_and_the_likeliest(app):
    whole = app.post("/api/chat", model="tiny", messages=QUESTION, stream=False, logprobs=True, top_logprobs=2)
    ids = tiny_tokenizer().encode(TEXT)
    assert [row["token"] for row in whole["logprobs"]] == [tiny_tokenizer().piece(i) for i in ids]
    assert b"".join(bytes(row["bytes"]) for row in whole["logprobs"]).decode() == TEXT
    assert all(len(row["top_logprobs"]) == 2 for row in whole["logprobs"])
    streamed = app.lines("/api/chat", model="tiny", messages=QUESTION, logprobs=True, top_logprobs=2)
    assert [row for line in streamed for row in line.get("logprobs", [])] == whole["logprobs"]
    plain = app.post("/api/chat", model="tiny", messages=QUESTION, stream=False, top_logprobs=2)
    assert "logprobs" not in plain


def test_an_error_in_a_stream_is_its_last_line(app):
    app.llm.fail_after = (2, BackendError("the device is gone."))
    *_, last = app.lines("/api/chat", model="tiny", messages=QUESTION)
    assert last == {"error": "the device is gone."}
    app.llm.fail_after = (2, ZeroDivisionError("secret prompt"))
    *_, last = app.lines("/api/chat", model="tiny", messages=QUESTION)
    assert list(last) == ["error"]
    assert "secret" not in last["error"]
    app.llm.fail_after = (0, BackendError("no device."))
    assert app.error("/api/chat", 500, model="tiny", messages=QUESTION) == "no device."
    assert app.llm.running == set()


def test_embeddings_have_length_one_and_are_cut_where_asked(app):
    made = app.post("/api/embed", model="tiny", input=["a", "longer text"])
    assert [sum(x * x for x in row) for row in made["embeddings"]] == pytest.approx([1.0, 1.0])
    tokenizer = tiny_tokenizer()
    assert made["prompt_eval_count"] == sum(1 + len(tokenizer.encode(text)) for text in ("a", "longer text"))
    [cut] = app.post("/api/embed", model="tiny", input="longer text", dimensions=3)["embeddings"]
    whole = made["embeddings"][1][:3]
    norm = sum(x * x for x in whole) ** 0.5
    assert cut == pytest.approx([x / norm for x in whole])
    assert app.post("/api/embed", model="tiny", input=[])["embeddings"] == []
    assert app.post("/api/embed", model="tiny", input="")["embeddings"] == []
    raw = app.post("/api/embeddings", model="tiny", prompt="a")["embedding"]
    assert raw[0] == 1 + len(tokenizer.encode("a"))


def test_inputs_that_are_too_long_are_cut_unless_that_is_refused(app):
    long = "word " * 600
    made = app.post("/api/embed", model="tiny", input=long, options={"num_ctx": 20})
    assert made["prompt_eval_count"] == 20
    assert "context" in app.error("/api/embed", model="tiny", input=long, truncate=False)
    short = "word " * 30
    assert "num_ctx" in app.error("/api/embed", model="tiny", input=short, truncate=False, options={"num_ctx": 20})


def test_images_reach_the_model_as_bytes_before_the_text(app, monkeypatch):
    seen = []
    monkeypatch.setattr(app.llm, "prepare", lambda prompt, **told: seen.append(prompt) or FakeLLM.prepare(app.llm, "x"))
    data = base64.b64encode(b"not a picture").decode()
    for sent in (data, f"data:image/png;base64,{data}"):
        app.post("/api/chat", model="tiny", messages=[QUESTION[0] | {"images": [sent]}], stream=False)
    app.post("/api/generate", model="tiny", prompt="Who are you?", images=[data], stream=False)
    wanted = [{"type": "image", "image": b"not a picture"}, {"type": "text", "text": "Who are you?"}]
    assert seen == [[{"role": "user", "content": wanted}]] * 3


def test_a_form_reaches_the_model(app, monkeypatch):
    seen = []

    def prepare(prompt, *, schema=None, grammar=None, **told):
        seen.append((schema, grammar is not None))
        return FakeLLM.prepare(app.llm, prompt, **told)

    monkeypatch.setattr(app.llm, "prepare", prepare)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    app.post("/api/chat", model="tiny", messages=QUESTION, stream=False, format=schema)
    app.post("/api/generate", model="tiny", prompt="x", stream=False, format=schema)
    app.post("/api/generate", model="tiny", prompt="x", stream=False, format="json")
    assert seen == [(schema, False), (schema, False), (None, True)]
    large = {"enum": ["x" * 70_000]}
    assert "format has" in app.error("/api/chat", 413, model="tiny", messages=QUESTION, format=large)


def test_images_above_the_limit_are_refused(tmp_path):
    from gemworks.server.settings import LimitSettings

    app = ServedApp(tmp_path, limits=LimitSettings(image_bytes=10))
    data = base64.b64encode(bytes(11)).decode()
    assert "images[0]" in app.error("/api/generate", 413, model="tiny", prompt="x", images=[data])
    app.close()


def test_the_official_client_speaks_with_it(app):
    """The async client over ASGI; the sync one and a real server: tests/system/server/test_ollama.py."""
    client = ollama.AsyncClient(host="http://127.0.0.1", transport=app.transport())

    async def use():
        whole = await client.chat("tiny", messages=QUESTION, options=ollama.Options(temperature=0, num_predict=3))
        assert whole.message.content == "Hello there"
        assert whole.done_reason == "length"
        text = ""
        async for part in await client.generate("tiny", "Hi", stream=True):
            text += part.response
        assert text == TEXT
        assert part.done
        assert part.context
        with pytest.raises(ollama.ResponseError) as raised:
            await client.chat("no-such", messages=QUESTION)
        assert raised.value.status_code == 404
        assert "not found" in raised.value.error

    app.run(use())


def test_clients_that_probe_find_a_server(app):
    assert app.ask("HEAD", "/").status_code == 200
    version = app.ask("GET", "/api/version").json()
    assert tuple(map(int, version["version"].split("."))) >= (0, 6, 4)
    assert version["gemworks"]
    assert "push" in app.error("/api/push", model="tiny")
    assert app.ask("GET", "/api/no-such").json()["error"].startswith("No such path")


def test_one_key_cannot_take_what_another_may(tmp_path):
    """Managing models needs a key that was made for it."""
    from gemworks.server.keys import add_key

    add_key(tmp_path / "keys", "user")
    admin = add_key(tmp_path / "keys", "boss", is_admin=True)
    user = add_key(tmp_path / "keys", "other")
    app = ServedApp(tmp_path, keys_file=tmp_path / "keys")

    def status(key, method, path, body):
        return app.ask(method, path, body, headers={"authorization": f"Bearer {key}"}).status_code

    calls = [
        ("POST", "/api/pull", {"model": "tiny"}),
        ("POST", "/api/create", {"model": "x", "from": "tiny"}),
        ("POST", "/api/copy", {"source": "tiny", "destination": "x"}),
        ("DELETE", "/api/delete", {"model": "tiny"}),
        ("POST", "/api/blobs/sha256:" + "0" * 64, b""),
        ("HEAD", "/api/blobs/sha256:" + "0" * 64, None),
    ]
    assert [status(user, *call) for call in calls] == [403] * len(calls)
    assert 403 not in [status(admin, *call) for call in calls]
    assert [app.ask(*call).status_code for call in calls] == [401] * len(calls)
    app.close()


def test_a_server_of_fixed_models_lets_nobody_change_them(tmp_path):
    app = ServedApp(tmp_path, models={"any_local": False})
    assert "any_local" in app.error("/api/pull", 403, model="gemma3:1b")
    assert [model["name"] for model in app.ask("GET", "/api/tags").json()["models"]] == ["tiny:latest"]
    app.close()
