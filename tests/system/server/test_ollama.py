"""The official Ollama client against a real server, and its answers against LLM in this process."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import urllib.request
from typing import Literal

import numpy as np
import ollama
import pydantic
import pytest
from PIL import Image

from gemworks import LLM, env

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def client(server):
    with ollama.Client(host=server.url) as made:
        yield made


@pytest.fixture(scope="module")
def llm():
    made = LLM("tiny")
    yield made
    made.close()


@pytest.fixture(scope="module")
def picture() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_chat_answers_what_llm_answers(client, llm):
    wanted = llm.chat(MESSAGES, temperature=0.0, max_tokens=12)
    whole = client.chat("tiny", messages=MESSAGES, options=GREEDY)
    assert whole.message.content == wanted.text
    assert whole.message.role == "assistant"
    assert whole.eval_count == wanted.completion_tokens
    assert whole.prompt_eval_count == wanted.prompt_tokens
    assert whole.done_reason == wanted.finish_reason
    assert whole.total_duration >= whole.eval_duration > 0
    parts = list(client.chat("tiny", messages=MESSAGES, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == wanted.text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_sampled_answers_are_those_of_llm_with_the_same_seed(client, llm):
    options = {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 7}
    wanted = llm.chat(MESSAGES, max_tokens=12, **options)
    assert client.chat("tiny", messages=MESSAGES, options={**options, "num_predict": 12}).message.content == wanted.text


def test_generate_answers_and_its_context_goes_on(client, llm):
    first = client.generate("tiny", "One", system="Be brief.", options=GREEDY)
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One"}]
    assert first.response == llm.chat(said, temperature=0.0, max_tokens=12).text
    second = client.generate("tiny", "Two", context=first.context, options=GREEDY)
    assert list(second.context)[: len(first.context)] == list(first.context)
    assert second.prompt_eval_count > len(first.context)
    raw = client.generate("tiny", "Once upon a time", raw=True, options=GREEDY)
    assert raw.response == llm.generate("Once upon a time", temperature=0.0, max_tokens=12).text
    parts = list(client.generate("tiny", "Once upon a time", raw=True, options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == raw.response


def test_ids_that_are_no_tokens_are_refused(client):
    with pytest.raises(ollama.ResponseError, match="token") as raised:
        client.generate("tiny", "x", context=[10**9])
    assert raised.value.status_code == 400


def test_an_image_is_seen_as_llm_sees_it(client, llm, picture, tmp_path):
    said = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    wanted = llm.chat(said, temperature=0.0, max_tokens=8).text
    options = GREEDY | {"num_predict": 8}
    file = tmp_path / "picture.png"
    file.write_bytes(picture)
    for image in (picture, str(file), base64.b64encode(picture).decode()):
        message = {"role": "user", "content": "What?", "images": [image]}
        assert client.chat("tiny", messages=[message], options=options).message.content == wanted
    answer = client.generate("tiny", "What?", images=[picture], options=options)
    assert answer.response == wanted
    assert answer.context is None
    blind = client.chat("tiny", messages=[{"role": "user", "content": "What?"}], options=options)
    assert answer.prompt_eval_count > blind.prompt_eval_count
    with pytest.raises(ollama.ResponseError, match="image") as raised:
        client.generate("tiny", "What?", images=[base64.b64encode(b"no picture").decode()])
    assert raised.value.status_code == 400


def test_embeddings_are_those_of_llm(client, llm):
    texts = ["The sky is blue.", "Rust is a fungus."]
    made = client.embed("tiny", texts)
    wanted = llm.embed(texts)
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(made.embeddings), wanted, atol=2e-2)
    np.testing.assert_allclose(np.linalg.norm(np.array(made.embeddings), axis=1), 1.0, atol=1e-6)
    assert made.prompt_eval_count == sum(1 + len(llm.tokenizer.encode(text)) for text in texts)
    long = client.embed("tiny", "word " * 3000)
    assert long.prompt_eval_count == llm.context
    assert len(client.embeddings("tiny", "x").embedding) == llm.config.model_dim


def test_logprobs_are_those_of_llm(client, llm):
    made = client.chat("tiny", messages=MESSAGES, options=GREEDY, logprobs=True, top_logprobs=2)
    wanted = llm.chat(MESSAGES, temperature=0.0, max_tokens=12, logprobs=True, top_logprobs=2).logprobs
    assert [row.token for row in made.logprobs] == [llm.tokenizer.piece(score.token_id) for score in wanted]
    np.testing.assert_allclose([r.logprob for r in made.logprobs], [s.logprob for s in wanted], atol=0.05)
    assert all(len(row.top_logprobs) == 2 for row in made.logprobs)


def test_answers_have_the_form_that_was_asked_for(client, llm):
    class Color(pydantic.BaseModel):
        name: Literal["red", "green"]
        light: bool

    schema = Color.model_json_schema()
    made = client.chat("tiny", messages=MESSAGES, format=schema, options={"temperature": 0})
    color = Color.model_validate_json(made.message.content)
    assert color == Color.model_validate_json(llm.chat(MESSAGES, schema=schema, temperature=0.0).text)
    parts = client.generate("tiny", "Which?", format=schema, options={"seed": 3}, stream=True)
    assert Color.model_validate_json("".join(part.response for part in parts))
    whole = client.generate("tiny", "JSON:", format="json", options=GREEDY | {"num_predict": 40})
    assert whole.done_reason == "length" or isinstance(json.loads(whole.response), dict)
    assert whole.response.startswith("{")


def test_the_async_client_asks_several_at_once(server):
    async def ask():
        async with ollama.AsyncClient(host=server.url) as client:
            first = await asyncio.gather(*(client.chat("tiny", messages=MESSAGES, options=GREEDY) for _ in range(4)))
            text = ""
            async for part in await client.generate("tiny", "Hi", options=GREEDY, stream=True):
                text += part.response
            whole = await client.generate("tiny", "Hi", options=GREEDY)
        return {answer.message.content for answer in first}, text, whole

    texts, streamed, whole = asyncio.run(ask())
    assert len(texts) == 1
    assert streamed == whole.response


def test_models_are_listed_shown_made_and_removed(client):
    assert "tiny:latest" in [model.model for model in client.list().models]
    shown = client.show("tiny")
    assert shown.details.family == "gemma3"
    assert shown.modelinfo["general.architecture"] == "gemma3"
    assert "vision" in shown.capabilities
    client.chat("tiny", messages=MESSAGES, options={"num_predict": 1})
    [running] = [model for model in client.ps().models if model.model == "tiny:latest"]
    assert running.context_length > 0
    assert client.create("pirate", from_="tiny", system="Arr.", parameters={"num_predict": 3}).status == "success"
    statuses = [part.status for part in client.create("captain", from_="pirate", stream=True)]
    assert statuses[-1] == "success"
    assert client.copy("pirate", "sailor").status == "success"
    assert {"pirate:latest", "captain:latest", "sailor:latest"} <= {model.model for model in client.list().models}
    for name in ("pirate", "captain", "sailor"):
        assert client.delete(name).status == "success"
    with pytest.raises(ollama.ResponseError) as raised:
        client.delete("pirate")
    assert raised.value.status_code == 404


def test_a_file_that_was_sent_becomes_a_model(client, tmp_path):
    from gemworks.errors import GemworksWarning
    from gemworks.weights.convert import convert
    from gemworks.weights.hub import TINY

    with pytest.warns(GemworksWarning):
        convert(TINY, tmp_path / "tiny.gguf")
    digest = client.create_blob(tmp_path / "tiny.gguf")
    assert client.create("sent", files={"tiny.gguf": digest}).status == "success"
    assert client.show("sent").details.format == "gguf"
    client.delete("sent")


def test_errors_have_ollamas_shape(client, server):
    with pytest.raises(ollama.ResponseError) as raised:
        client.chat("no-such-model", messages=MESSAGES)
    assert raised.value.status_code == 404
    assert "not found" in raised.value.error
    with pytest.raises(ollama.ResponseError, match="not"):
        client.chat("tiny", messages=MESSAGES, format={"not": {"type": "string"}})
    with pytest.raises(ollama.ResponseError, match="think"):
        client.chat("tiny", messages=MESSAGES, think=True)
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.generate("no-such-model", "x", stream=True))


def test_lines_come_as_they_are_made(server):
    """As curl sends it: no JSON content type, and the stream is on where nothing is said."""
    body = json.dumps({"model": "tiny", "prompt": "Hi", "options": {"num_predict": 30, "temperature": 0}}).encode()
    request = urllib.request.Request(f"{server.url}/api/generate", body)  # application/x-www-form-urlencoded
    with urllib.request.urlopen(request) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in response]
    assert lines[-1]["done"] is True
    assert len({line["created_at"] for line in lines}) > 1


def test_keep_alive_zero_takes_a_model_from_memory(client):
    client.generate("tiny", "", keep_alive=-1)
    assert client.ps().models
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    assert not client.ps().models
    assert client.generate("tiny").done_reason == "load"
    assert client.ps().models


def test_ps_and_stop_talk_to_it(client, server):
    def gemworks(*arguments):
        told = env.for_child({"GEMWORKS_HOST": server.url})
        return subprocess.run(
            [sys.executable, "-m", "gemworks", *arguments], capture_output=True, text=True, timeout=120, env=told
        )

    client.generate("tiny", keep_alive=-1)
    listed = gemworks("ps")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["NAME", "tiny"]
    assert gemworks("stop", "tiny").stdout == "tiny is out of memory.\n"
    assert not client.ps().models
    client.generate("tiny")
