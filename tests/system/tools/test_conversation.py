"""The loop with real parts: a sandboxed tool that is stopped while it runs, and the embedded model calling one."""

import signal
import threading
import time

import pytest
from scripted_llm import ScriptedLLM

from gemworks import LLM
from gemworks.tools import Access, AuditLog, Toolbox, allow, converse

SOURCE = '''
import time
from typing import Literal


def double(x: Literal[1, 2, 4]) -> int:
    """Twice a number."""
    return 2 * x


def sleep(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "slept"
'''


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    file = tmp_path_factory.mktemp("tools") / "mine.py"
    file.write_text(SOURCE)
    return Toolbox.from_file(file)


def test_stop_kills_what_runs_and_keeps_the_conversation(tools, tmp_path):
    """One call has ended, one sleeps: the first keeps its result, the second is told to be stopped."""
    stop, log = threading.Event(), AuditLog(tmp_path / "calls.jsonl")
    session = tools.session("assistant", Access([allow("*")]), audit=log)
    llm = ScriptedLLM([("double", {"x": 4}), ("sleep", {"seconds": 15.0})], "never said")
    messages = [{"role": "user", "content": "go"}]
    timer = threading.Timer(2.0, stop.set)
    timer.start()
    started = time.monotonic()
    events = list(converse(llm, messages, session, stop=stop))
    assert 1.5 < time.monotonic() - started < 8.0
    timer.join()
    assert [message["content"] for message in messages if message["role"] == "tool"] == [
        "8",
        "error: sleep: it was stopped",
    ]
    assert events[-1].why == "stopped" and len(llm.asked) == 1
    assert '"verdict":"stopped"' in log.path.read_text() and log.verify().is_sound


def test_ctrl_c_kills_what_runs_and_every_call_has_a_result(tools):
    session = tools.session("assistant", Access([allow("*")]))
    messages = [{"role": "user", "content": "go"}]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(1.0, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(converse(ScriptedLLM([("sleep", {"seconds": 15.0})], "x"), messages, session))
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 6.0
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]


@pytest.mark.exhaustive
def test_the_embedded_model_calls_a_sandboxed_function(tools):
    """Its weights are random, so what it says means nothing; that its call is valid, run and told back does."""
    session = tools.session("assistant", Access([allow("double")]))
    messages = [{"role": "user", "content": "Double four."}]
    llm = LLM("tiny")
    try:
        options = {"tool_choice": "required", "rounds": 1, "max_tokens": 60, "temperature": 0.0}
        options["parallel_tool_calls"] = False
        events = list(converse(llm, messages, session, **options))
    finally:
        llm.close()
    calls = next(event for event in events if event.kind == "calls").calls
    assert {call["function"]["name"] for call in calls} == {"double"}
    results = [event.result for event in events if event.kind == "result"]
    assert [result.status for result in results] == ["ok"] * len(calls)
    told = [message["content"] for message in messages if message["role"] == "tool"]
    assert told == [str(result.value) for result in results]
    assert events[-1].why == "rounds" and messages[-1]["role"] == "assistant"
