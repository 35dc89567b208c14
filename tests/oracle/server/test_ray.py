"""Two replicas on a local Ray: like beginnings go to one of them, and killing one loses nothing that had not begun."""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "gemworks[ray]"')

# Ray's own models use an argument of pydantic 1, which pydantic 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

PORT_OPTIONS = {"host": "127.0.0.1"}
LONG = "the red cat sings under seven blue rivers and the small house sleeps while old music plays in the sun " * 3


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[tuple[str, int, Any]]:
    """(host, port, handle of the replicas) of the application, as `serve run gemworks.cli.ray_app:app` deploys it."""
    from ray import serve

    from gemworks.cli.ray_app import app

    folder = tmp_path_factory.mktemp("ray")
    config = folder / "serve.toml"
    config.write_text(f"usage_file = '{folder / 'usage.sqlite'}'\n[logs]\nlevel = 'error'\n", encoding="utf-8")
    port = free_port()
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    try:
        serve.start(http_options={**PORT_OPTIONS, "port": port})
        arguments = {"model": "tiny", "replicas": "2", "cpus": "1", "max_sequences": "4", "config": str(config)}
        serve.run(app(arguments), name="gemworks", route_prefix="/")
        yield "127.0.0.1", port, serve.get_deployment_handle("replica", app_name="gemworks")
    finally:
        serve.shutdown()
        ray.shutdown()


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def post(address, path: str, body: dict[str, Any]) -> tuple[int, str]:
    host, port, _ = address
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=120)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def completion(prompt: str, *, tokens: int = 8, stream: bool = False) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}


def prefilled(address) -> dict[int, int]:
    """Process of each replica -> prompt tokens it has computed. Asked until both have answered."""
    found: dict[int, int] = {}
    until = time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < until:
        told = address[2].stats.remote().result(timeout_s=30)
        found[told["pid"]] = told["engines"]["tiny"]["tokens_prefilled"]
    return found


def test_an_answer_is_the_servers(address):
    """Both APIs, whole and streamed, and an error with its status."""
    status, body = post(address, "/v1/completions", completion("the red cat"))
    assert status == 200
    text = json.loads(body)["choices"][0]["text"]
    status, body = post(address, "/v1/completions", completion("the red cat", stream=True))
    events = [event.removeprefix("data: ") for event in body.split("\n\n") if event.startswith("data: ")]
    assert events[-1] == "[DONE]"
    streamed = "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])
    assert streamed == text
    asked = {"model": "tiny", "prompt": "the red cat", "raw": True, "stream": False}
    status, body = post(address, "/api/generate", asked | {"options": {"temperature": 0, "num_predict": 8}})
    assert (status, json.loads(body)["response"]) == (200, text)
    status, body = post(address, "/v1/completions", {"model": "nobody", "prompt": "x"})
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


def test_the_same_beginning_goes_to_the_same_replica(address):
    """Ten questions about one text are computed by one of the two, which computes the text once."""
    before = prefilled(address)
    texts = [f"{LONG} {i}" for i in range(10)]
    for text in texts:
        assert post(address, "/v1/completions", completion(text))[0] == 200
    new = sorted(after - before[pid] for pid, after in prefilled(address).items())
    assert new[0] == 0
    assert 0 < new[1] < 3 * len(LONG)  # at most a token a character, and not ten times


def test_a_replica_that_dies_loses_no_request_that_had_not_begun(address):
    """Sixteen clients ask while one replica is killed: every one whose answer had not begun gets all of it."""
    prompts = [f"{i} small birds sing and {'the house sleeps ' * (i % 5)}" for i in range(16)]
    alone = {prompt: post(address, "/v1/completions", completion(prompt, tokens=60)) for prompt in prompts}
    assert {status for status, _ in alone.values()} == {200}
    texts = {prompt: json.loads(body)["choices"][0]["text"] for prompt, (_, body) in alone.items()}
    wrong: list[str] = []
    counts = {"whole": 0, "streamed": 0, "broken": 0}
    stop = threading.Event()

    def client(prompt: str, stream: bool) -> None:
        while not stop.is_set():
            try:
                told = outcome(*post(address, "/v1/completions", completion(prompt, tokens=60, stream=stream)))
            except (OSError, http.client.HTTPException) as error:
                wrong.append(f"{type(error).__name__}: {error}")
                continue
            if told in ("broken", texts[prompt]):
                counts["broken" if told == "broken" else "streamed" if stream else "whole"] += 1
            else:
                wrong.append(told[:200])

    clients = [threading.Thread(target=client, args=(prompt, i % 2 == 0)) for i, prompt in enumerate(prompts)]
    for one in clients:
        one.start()
    time.sleep(2)
    victim, survivors = killed(address)
    time.sleep(8)
    stop.set()
    for one in clients:
        one.join()
    assert wrong == []
    assert counts["whole"] > 8 and counts["streamed"] > 8
    assert counts["broken"] <= 8  # those that were streaming at that moment
    assert victim not in survivors
    until = time.monotonic() + 300
    while len(now := prefilled(address)) < 2 and time.monotonic() < until:
        time.sleep(1)
    assert len(now) == 2 and victim not in now, "Ray has started another one"


def outcome(status: int, body: str) -> str:
    """An answer's text; "broken" for a stream that ended with the replica; else what is wrong with it."""
    if status != 200:
        return f"{status}: {body}"
    if not body.startswith("data: "):
        return json.loads(body)["choices"][0]["text"]
    events = [event.removeprefix("data: ") for event in body.split("\n\n") if event.startswith("data: ")]
    if '"replica_lost"' in events[-1]:
        return "broken"
    if events[-1] != "[DONE]":
        return f"a stream without an end: {body[-200:]}"
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


def killed(address) -> tuple[int, set[int]]:
    """Kill one replica's process; returns it and the others."""
    processes = set(prefilled(address))
    victim = min(processes)
    assert Path(f"/proc/{victim}").exists() or os.name != "posix"
    os.kill(victim, signal.SIGKILL)
    return victim, processes - {victim}
