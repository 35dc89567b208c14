"""What an operator counts on, of a real process: draining, kill -9, limits, keys, a full queue, a full disk, TLS.

Two processes have the model `tiny`; the others (tests/fake_server.py) say a fixed text as slowly as they are told.
"""

import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gemworks import env
from gemworks.cli.main import run_command
from gemworks.server.keys import add_key, revoke_key
from gemworks.server.usage import read_usage

ROOT = Path(__file__).parents[3]
SECRET = "xyzzy plugh"  # of prompts
_PATIENCE_S = 240  # of clients: this machine may be shared
ANSWER = "Frobnicate the quux. " * 20


class Running:
    """A server process. `lines` is what it has written, both streams."""

    def __init__(self, command: list[str], folder: Path):
        told = env.for_child({"GEMWORKS_HOME": str(folder / "home"), "GEMWORKS_HOST": None, "PYTHONPATH": str(ROOT)})
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=told
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: self.process.poll() is not None or "Listening on" in self.text, _PATIENCE_S)
        found = re.search(r"Listening on (http\S+)", self.text)
        assert found is not None, self.text
        self.url = found[1]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def log(self) -> list[dict]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def ask(self, tokens: int = 5, *, key: str = "", stream: bool = False, **more) -> httpx.Response:
        """One chat completion, whole."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": tokens}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body |= {"stream": stream} | more
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=_PATIENCE_S)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.ended(timeout)

    def ended(self, timeout: float = 30.0) -> int:
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        assert self.process.stdout is not None
        self.process.stdout.close()


def wait_until(holds, timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def real(tmp_path) -> Iterator:
    """real() -> Running: `gemworks serve tiny`, all with one home; programs are compiled as they are needed."""
    (tmp_path / "serve.toml").write_text("models.warm_up = false\n")
    options = ("--port", "0", "--config", "serve.toml", "--context", "512", "--max-sequences", "2")
    command = _command("-m", "gemworks", "serve", "tiny", *options)
    yield from _opened(lambda: Running(command, tmp_path))


@pytest.fixture
def fake(tmp_path) -> Iterator:
    """fake(settings as TOML, seconds between tokens) -> Running: the same server over tests/fake_llm.py."""
    yield from _opened(lambda settings, delay_s=0.0: _fake(tmp_path, settings, delay_s))


def _fake(folder: Path, settings: str, delay_s: float) -> Running:
    (folder / "serve.toml").write_text(settings)
    return Running(_command(str(ROOT / "tests" / "fake_server.py"), "serve.toml", str(delay_s), ANSWER), folder)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _opened(start) -> Iterator:
    opened: list[Running] = []

    def open_one(*arguments) -> Running:
        opened.append(start(*arguments))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


class Stream(threading.Thread):
    """A streaming client in a thread. `text` grows; `is_whole` when [DONE] came."""

    def __init__(self, running: Running, tokens: int, *, verify: Any = True, **more):
        super().__init__(daemon=True)
        self.verify = verify
        self.body = {"model": "tiny", "prompt": "The", "max_tokens": tokens, "stream": True} | more
        self.url = f"{running.url}/v1/completions"
        self.text, self.status, self.is_whole, self.failure = "", 0, False, ""
        self.headers: dict[str, str] = {}
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self.url, json=self.body, timeout=_PATIENCE_S, verify=self.verify) as answer:
                self.status, self.headers = answer.status_code, dict(answer.headers)
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        self.is_whole = True
                    elif line.startswith("data: ") and self.status == 200:
                        self.text += json.loads(line[6:])["choices"][0]["text"]
        except httpx.HTTPError as error:
            self.failure = type(error).__name__


@pytest.mark.exhaustive
def test_kill_9_and_sigterm_under_load(real, tmp_path):
    """After kill -9 the next process serves and no usage is lost; after SIGTERM streams finish, others get 503."""
    first = real()
    assert [first.ask().status_code for _ in range(3)] == [200] * 3
    file = tmp_path / "home" / "usage.sqlite"
    wait_until(lambda: file.exists() and _requests(file, "") == 3)
    streams = [Stream(first, 300) for _ in range(2)]
    wait_until(lambda: all(one.text for one in streams), _PATIENCE_S)
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert [(row["requests"], row["failed"]) for row in read_usage(file, ["model"])] == [(3, 0)]

    second = real()
    assert "loopback" in second.text and "--host 0.0.0.0 --keys FILE" in second.text
    alone = second.ask(temperature=0).json()["choices"][0]["message"]["content"]
    assert httpx.get(f"{second.url}/health/ready").json()["status"] == "ready"
    bias = {str(i): -100 for i in (1, 106)}  # the two that would end it
    streams = [Stream(second, 250, temperature=0, logit_bias=bias) for _ in range(4)]
    wait_until(lambda: sum(bool(one.text) for one in streams) >= 2, _PATIENCE_S)  # the other two wait in the engine
    second.process.terminate()
    wait_until(lambda: httpx.get(f"{second.url}/health/ready").status_code == 503)
    refused = second.ask()
    live, ready = httpx.get(f"{second.url}/health/live"), httpx.get(f"{second.url}/health/ready")
    assert any(one.is_alive() for one in streams), "too quick to be a test"
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert "stopping" in refused.json()["error"]["message"]
    assert live.status_code == 200 and ready.json()["status"] == "draining"
    assert second.ended(60) == 0
    for one in streams:
        one.join(60)
    assert all(one.is_whole and one.status == 200 and not one.failure for one in streams)
    assert len({one.text for one in streams}) == 1 and alone
    assert [(row["requests"], row["cancelled"]) for row in read_usage(file, ["model"])] == [(3 + 1 + 4, 0)]
    assert [line["event"] for line in second.log if line["event"] in ("stopping", "stopped")] == ["stopping", "stopped"]


def test_the_grace_period_has_an_end(fake):
    running = fake("grace_s = 0.5\n", 0.5)
    stream = Stream(running, 90)
    wait_until(lambda: stream.text)
    begun = time.monotonic()
    assert running.stop() == 0
    assert 0.4 < time.monotonic() - begun < 20, "the answer takes 45 s"
    stream.join(10)
    assert stream.text and not stream.is_whole
    assert running.log[-1]["event"] == "stopped"
    assert [line["outcome"] for line in running.log if line["event"] == "request"] == ["cancelled"]


def test_https_and_a_second_ctrl_c_that_ends_at_once(fake, tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    files = ("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"))
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    subprocess.run([openssl, "req", "-x509", "-nodes", *kind, "-days", "2", *files, *name], check=True)
    running = fake('grace_s = 60\n[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n', 0.5)
    assert running.url.startswith("https://127.0.0.1:")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    assert httpx.get(f"{running.url}/v1/models", verify=trusting).json()["data"][0]["id"] == "tiny"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/v1/models")
    stream = Stream(running, 90, verify=trusting)
    wait_until(lambda: stream.text)
    begun = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert running.process.poll() is None, "the first one lets streams finish"
    running.stop(signal.SIGINT)
    assert time.monotonic() - begun < 20, "the answer takes 45 s"
    stream.join(10)
    assert stream.text and not stream.is_whole


def test_a_taken_port_is_one_sentence(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command(["serve", "tiny", "--port", str(port)]) == 2
    out, err = capfd.readouterr()
    assert f"Error: the server must be able to listen on 127.0.0.1:{port}, got: Address already in use" in err
    assert not out and "Traceback" not in err


class Office(NamedTuple):
    """A server with keys, a queue of two, and its usage on a disk of 256 KiB (None: none could be mounted)."""

    running: Running
    keys_file: Path
    keys: dict[str, str]
    disk: Path | None


@pytest.fixture(scope="module")
def office(tmp_path_factory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    keys_file, disk, mount = folder / "keys.json", folder / "disk", shutil.which("mount")
    disk.mkdir()
    command = [str(mount), "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    is_mounted = mount is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    limits: dict[str, dict] = {"ann": {"requests_per_minute": 3}, "bob": {}, "carol": {"concurrency": 1}, "dave": {}}
    keys = {name: add_key(keys_file, name, **of) for name, of in limits.items()}
    settings = 'keys_file = "keys.json"\nusage_file = "disk/usage.sqlite"\nlimits.queue = 2\nlogs.level = "debug"\n'
    running = _fake(folder, settings, 0.05)
    yield Office(running, keys_file, keys, disk if is_mounted else None)
    running.close()
    if is_mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_wrong_key_is_401_and_one_over_its_limit_429_while_others_go_on(office):
    running, ann, bob = office.running, office.keys["ann"], office.keys["bob"]
    for wrong in ("", "x", ann[:-1] + ("0" if ann[-1] != "0" else "1")):
        refused = running.ask(key=wrong)
        assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{running.url}/v1/models").status_code == 401
    for left in ("2", "1", "0"):
        good = running.ask(key=ann)
        assert good.status_code == 200 and good.headers["x-ratelimit-remaining-requests"] == left
    over = running.ask(key=ann)
    assert over.status_code == 429 and 1 <= int(over.headers["retry-after"]) <= 60
    assert over.json()["error"]["code"] == "rate_limit_exceeded"
    told = running.ask(key=bob)
    assert told.status_code == 200 and "x-ratelimit-limit-requests" not in told.headers


def test_a_key_is_known_and_refused_soon_after_the_file_changed(office):
    erin = add_key(office.keys_file, "erin")
    wait_until(lambda: office.running.ask(1, key=erin).status_code == 200)
    revoke_key(office.keys_file, "erin")
    wait_until(lambda: office.running.ask(1, key=erin).status_code == 401)


def test_a_full_queue_is_429_and_nobody_who_was_let_in_suffers(office):
    def ask(_) -> httpx.Response:
        return office.running.ask(3, key=office.keys["bob"])

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    full = [answer for answer in answers if answer.status_code == 429]
    good = [answer for answer in answers if answer.status_code == 200]
    assert len(full) + len(good) == 12 and len(good) >= 2 and full
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in full)
    assert "calls wait already" in full[0].json()["error"]["message"]
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in good}) == 1
    assert _metric(office.running, 'refused_total{reason="queue"}') == len(full)
    assert ask(None).status_code == 200


def test_on_a_full_disk_calls_go_on_and_it_is_said(office):
    """In the metric, the log and the details of /health/ready; and nothing is lost when there is room again."""
    running, dave = office.running, office.keys["dave"]
    if office.disk is None:
        pytest.skip("mounting a small tmpfs needs privileges this process does not have")
    file = office.disk / "usage.sqlite"
    assert running.ask(1, key=dave).status_code == 200
    wait_until(lambda: _requests(file, "dave") == 1)
    with open(office.disk / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    asked = 1
    while not _metric(running, "usage_write_failures_total"):  # what is left of a page takes some batches
        assert running.ask(1, key=dave).status_code == 200
        asked += 1
    assert running.ask(1, key=dave).status_code == 200
    ready = httpx.get(f"{running.url}/health/ready")
    assert ready.status_code == 200 and "usage cannot be written" in ready.json()["problems"]["usage"]
    told = [line for line in running.log if line["event"] == "usage is not written"]
    assert len(told) == 1 and told[0]["level"] == "error" and "full" in told[0]["message"]
    (office.disk / "filler").unlink()
    wait_until(lambda: _requests(file, "dave") == asked + 1)
    assert httpx.get(f"{running.url}/health/ready").json()["problems"] == {}


@pytest.mark.exhaustive
def test_the_log_has_no_word_of_prompts_answers_or_keys(office):
    """After everything that may go wrong with a prompt in it."""
    running, carol = office.running, office.keys["carol"]
    url, headers = f"{running.url}/v1/chat/completions", {"Authorization": f"Bearer {carol}"}
    unknown = {"model": SECRET, "messages": [{"role": "user", "content": SECRET}]}
    for body in ('{"model": "tiny", "messages": "' + SECRET, json.dumps(unknown), json.dumps({SECRET: SECRET})):
        assert httpx.post(url, content=body, headers=headers).status_code in (400, 404)
    httpx.post(f"{running.url}/v1/nothing?q={SECRET}", content=SECRET, headers=headers)
    assert running.ask(key=carol, stream=True).status_code == 200
    assert httpx.post(f"{running.url}/api/chat", json=unknown | {"model": "tiny"}, headers=headers).status_code == 200
    done = running.ask(7, key=carol)
    wait_until(lambda: any(line.get("id") == done.headers["x-request-id"] for line in running.log))
    line = next(line for line in running.log if line.get("id") == done.headers["x-request-id"])
    assert (line["key"], line["model"], line["status"], line["outcome"]) == ("carol", "tiny", 200, "done")
    assert line["completion_tokens"] == 7 and line["prompt_tokens"] == done.json()["usage"]["prompt_tokens"]
    assert line["seconds"] >= line["first_token_seconds"] > 0
    keys = office.keys.values()
    for secret in (*SECRET.split(), "Frobnicate", "quux", *keys, *(key.rpartition("_")[2] for key in keys)):
        assert secret not in running.text, secret


def _metric(running: Running, name: str) -> float:
    text = httpx.get(f"{running.url}/metrics").text
    found = re.search(rf"^gemworks_{re.escape(name)} (\S+)$", text, flags=re.M)
    return float(found[1]) if found else 0.0


def _requests(file: Path, key: str) -> int:
    return sum(row["requests"] for row in read_usage(file, [], key=key))
