"""The log: one JSON object a line, counts and names only, written beside the answers and never in their way."""

import io
import json
import logging
import threading
import time

import pytest

from gemworks.errors import StorageError
from gemworks.server import logs as logs_module
from gemworks.server.logs import Logs
from gemworks.server.record import Record
from gemworks.server.settings import LogSettings


def told(settings=None, act=lambda logs: None) -> list[dict]:
    stream = io.StringIO()
    logs = Logs(settings or LogSettings(), stream=stream)
    act(logs)
    logs.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def call(**fields) -> Record:
    usual = {
        "id": "req_1", "method": "POST", "path": "/v1/chat", "route": "/v1/chat", "call": "chat",
        "model": "tiny", "key": "ann", "status": 200, "outcome": "done", "prompt_tokens": 10, "cached_tokens": 4,
        "completion_tokens": 3, "finish_reasons": ["stop"], "first_token_s": 0.25, "queue_s": 0.125, "seconds": 1.5,
    }  # fmt: skip
    return Record(**(usual | fields))


def test_a_call_is_one_line_with_its_counts_and_times():
    (line,) = told(act=lambda logs: logs.request(call()))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "event": "request", "id": "req_1", "method": "POST", "route": "/v1/chat",
        "status": 200, "key": "ann", "seconds": 1.5, "call": "chat", "model": "tiny", "outcome": "done",
        "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 3, "finish_reasons": ["stop"],
        "queue_seconds": 0.125, "first_token_seconds": 0.25,
    }  # fmt: skip


def test_what_is_no_call_has_no_counts_and_an_unknown_path_is_shortened():
    (line,) = told(act=lambda logs: logs.request(Record(id="r", method="GET", path="/x" * 500, status=404)))
    assert "model" not in line and len(line["path"]) == 100 and "route" not in line


def test_levels_hold_back_what_is_below_them():
    def act(logs):
        logs.tell("a", level="debug")
        logs.tell("b")
        logs.tell("c", level="error")

    assert [line["event"] for line in told(act=act)] == ["b", "c"]
    assert [line["event"] for line in told(LogSettings(level="error"), act)] == ["c"]
    assert [line["event"] for line in told(LogSettings(level="debug"), act)] == ["a", "b", "c"]


def test_probes_are_told_at_debug_and_failures_at_error():
    def act(logs):
        logs.request(Record(id="r", method="GET", path="/health/ready", route="/health/ready", status=200))
        logs.request(call(status=500, outcome="failed", error="KeyError"))

    (line,) = told(act=act)
    assert (line["level"], line["error"]) == ("error", "KeyError")


def secret_failure():
    secret = "my secret prompt"
    raise ValueError(f"cannot do {secret}")


def test_an_exception_is_told_without_its_text():
    def act(logs):
        try:
            secret_failure()
        except ValueError as error:
            logs.defect(error, id="req_9")

    (line,) = told(act=act)
    assert (line["event"], line["level"], line["error"], line["id"]) == ("defect", "error", "ValueError", "req_9")
    assert line["places"][-1].endswith("secret_failure") and "secret prompt" not in json.dumps(line)


def test_what_libraries_log_comes_along_without_texts_of_exceptions():
    def act(logs):
        logs.capture()
        logging.getLogger("somelib").warning("a %s", "thing")
        logging.getLogger("somelib").info("not this")
        try:
            secret_failure()
        except ValueError:
            logging.getLogger("somelib").exception("my secret prompt broke")
            logging.getLogger("uvicorn.error").exception("told by the middleware already")

    lines = told(act=act)
    assert [line["event"] for line in lines] == ["library", "defect"]
    assert (lines[0]["logger"], lines[0]["message"], lines[0]["level"]) == ("somelib", "a thing", "warning")
    assert "secret prompt" not in json.dumps(lines)
    assert not [one for one in logging.getLogger().handlers if type(one).__module__ == logs_module.__name__]


def test_a_line_is_one_line_whatever_is_in_it():
    stream = io.StringIO()
    for form in ("json", "text"):
        logs = Logs(LogSettings(format=form), stream=stream)
        logs.tell("x", message='a\nb\r"\u2028\u00e4\x1b[31m')
        logs.close()
    text = stream.getvalue()
    assert len(text.splitlines()) == 2 and text.isascii() and "\x1b" not in text


def test_a_stream_that_blocks_holds_nobody_up_and_what_is_too_much_is_counted(monkeypatch):
    monkeypatch.setattr(logs_module, "_MOST_WAITING", 100)
    free = threading.Event()

    class Blocked(io.StringIO):
        def write(self, text):
            free.wait(10)
            return super().write(text)

    stream = Blocked()
    logs = Logs(LogSettings(), stream=stream)
    logs.tell("first", level="error")
    time.sleep(0.3)
    begun = time.perf_counter()
    for _ in range(500):
        logs.tell("x")
    assert time.perf_counter() - begun < 1.0
    assert logs.lost() == 400
    free.set()
    logs.close()
    assert len(stream.getvalue().splitlines()) == 101


def test_a_stream_that_fails_is_counted():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    logs = Logs(LogSettings(), stream=Full())
    logs.tell("x")
    logs.tell("y")
    logs.close()
    assert logs.lost() == 2


def test_a_file_is_appended_to_and_one_that_cannot_be_is_said(tmp_path):
    for event in ("a", "b"):
        logs = Logs(LogSettings(file=tmp_path / "log"))
        logs.tell(event)
        logs.close()
    assert [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()] == ["a", "b"]
    with pytest.raises(StorageError, match=r"\(logs.file\) cannot be written: Is a directory"):
        Logs(LogSettings(file=tmp_path))


def test_spans_have_counts_and_the_callers_trace():
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra telemetry")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from gemworks.server.settings import TelemetrySettings
    from gemworks.server.telemetry import open_telemetry

    assert open_telemetry(TelemetrySettings()) is None
    exporter = InMemorySpanExporter()
    telemetry = open_telemetry(TelemetrySettings(service="chat"), exporter=exporter)
    assert telemetry is not None
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    telemetry.record(call(traceparent=parent, started_at=1000.0))
    telemetry.record(call(outcome="failed", error="KeyError"))
    telemetry.close()
    done, failed = exporter.get_finished_spans()
    assert done.name == "chat tiny" and f"{done.context.trace_id:032x}" == parent.split("-")[1]
    assert done.start_time == 1000 * 10**9 and done.end_time == 1_001_500_000_000
    assert done.attributes["gen_ai.usage.input_tokens"] == 10 and done.attributes["gen_ai.usage.output_tokens"] == 3
    assert done.resource.attributes["service.name"] == "chat"
    assert failed.status.description == "KeyError" and not failed.status.is_ok
