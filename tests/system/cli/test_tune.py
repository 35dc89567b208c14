"""Tuning the embedded model by the command: killed and run again, refused, and the ids it learns beside serving's."""

import json
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from gemworks import LLM
from gemworks.data.chat_rendering import render

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "How the weather is",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
WITH_CALLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is it in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": '{"degrees": 21}'},
    {"role": "assistant", "content": "21 degrees."},
    {"role": "user", "content": "And in Rome?"},
    {"role": "assistant", "content": "I do not know."},
]
PLAIN = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A small model."}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    path.write_text((json.dumps({"messages": PLAIN}) + "\n") * 8)
    return path


@pytest.mark.exhaustive
def test_killed_run_goes_on_when_it_is_run_again(gemworks, environment, cache, data, tmp_path):
    out = tmp_path / "run"
    options = {"--out": out, "--steps": 8, "--length": 64, "--batch": 64, "--samples": 0, "--targets": "q,v"}
    options |= {"--validation": 0, "--set": "execution.checkpoint_every=2"}
    command = ["tune", "tiny", data, *(part for option in options.items() for part in option)]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    child = subprocess.Popen(
        [sys.executable, "-m", "gemworks", *map(str, command)],
        env=environment | compiled,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "2").is_dir() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    _, errors = child.communicate()
    assert (out / "checkpoints" / "2").is_dir(), errors
    done = gemworks(*command, **compiled)
    assert done.returncode == 0, done.stderr
    assert f"gemworks run tiny --adapter {out / 'adapter'}" in done.stdout
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records] == list(range(1, 9))
    assert records[-1]["loss"] < records[0]["loss"]
    assert (out / "adapter" / "README.md").read_text().startswith("---\nbase_model:")
    assert (out / "report.html").is_file()


def test_learned_ids_are_those_that_are_prepared_for_every_prefix():
    with closing(LLM("tiny", context=512)) as llm:
        for messages, tools in ((WITH_CALLS, TOOLS), (WITH_CALLS, None), (PLAIN, None)):
            made = render(llm.tokenizer, messages, tools or ())
            ids, learned = made.ids.tolist(), made.learned
            starts = np.flatnonzero(learned[1:] & ~learned[:-1]) + 1
            answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            assert len(starts) == len(answers)
            for start, i in zip(starts.tolist(), answers, strict=True):
                prompt = llm.prepare(messages[:i], **({} if tools is None else {"tools": tools})).request.prompt
                assert list(prompt) == ids[:start]
