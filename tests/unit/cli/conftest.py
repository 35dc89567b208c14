"""A model that answers with what it was asked, and a home directory of its own for every test."""

import json
from types import SimpleNamespace

import pytest
from small_models import random_arrays, small_config

from gemworks import Completion
from gemworks.engine.types import Timings
from gemworks.errors import RequestError
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.names import hf_from_ours
from gemworks.weights.safetensors_write import TensorSource, write_shards


class FakeLLM:
    """Answers "<role>:<content>;..." of all messages, or the raw text in capitals. Remembers what it was given."""

    def __init__(self, *, is_chat=True, context=64, finish_reason="stop"):
        self.is_chat, self.context = is_chat, context
        self.finish_reason = finish_reason
        self.asked = []
        self.closed = 0

    def stream(self, prompt, **sampling):
        self.asked.append((prompt, sampling))
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if text == "too long":
            raise RequestError("this request needs 99 tokens; the context holds 64.")
        if isinstance(prompt, str):
            return self._chunks(prompt.upper())
        return self._chunks(";".join(f"{message['role']}:{message['content']}" for message in prompt))

    def _chunks(self, text):
        try:
            for letter in text:
                yield SimpleNamespace(text=letter, token_ids=(1,), finish_reason=None, completion=None)
            timings = Timings(load_s=1.5, prefill_s=0.5, decode_s=2.0, prefill_tokens=5, decode_tokens=8)
            completion = Completion(
                text=text,
                token_ids=[7, 8],
                prompt_tokens=5,
                completion_tokens=9,
                finish_reason=self.finish_reason,
                timings=timings,
            )
            yield SimpleNamespace(text="", token_ids=(), finish_reason=self.finish_reason, completion=completion)
        finally:
            self.closed += 1


@pytest.fixture
def fake_llm():
    return FakeLLM


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("GEMWORKS_HOME", str(folder))
    return folder


@pytest.fixture
def run_command(capsys):
    """run_command("list") -> (code, stdout, stderr), in this process."""
    from gemworks.cli.main import run_command

    def run(*arguments):
        code = run_command([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with a small random chat model in fp32, without a tokenizer."""
    config = small_config()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tensors = [
        TensorSource(hf_from_ours(name), "F32", array.shape, lambda array=array: array)
        for name, array in random_arrays(config).items()
    ]
    write_shards(folder, tensors, shard_bytes=10**9)
    (folder / "config.json").write_text(json.dumps(json_from_text_config(config)))
    generation = {"eos_token_id": [1, 106], "do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture
def said_lines():
    """said_lines("hello", "/bye") -> what a Repl reads its lines with: these, then the end of the input."""

    def reader(*lines):
        script = iter(lines)

        def read_line(_prompt):
            line = next(script, None)
            if line is None:
                raise EOFError
            return line

        return read_line

    return reader
