"""A hub on this machine, a small chat model, and a terminal to type into."""

import contextlib
import hashlib
import http.server
import json
import os
import pty
import re
import select
import string
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest
from small_models import random_arrays, small_config

from gemworks.tokenizer import Tokenizer
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.names import hf_from_ours
from gemworks.weights.safetensors_write import TensorSource, write_shards


@dataclass
class Repo:
    """One repository of the double. `gated`: its files need the token "good"."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    gated: bool = False


@dataclass
class HubDouble:
    """What the tests set and look at. Speaks model info and file downloads, with redirects and ranges like the hub."""

    repos: dict[str, Repo] = field(default_factory=dict)
    url: str = ""
    bytes_per_second: float = 0.0  # 0: as fast as it goes
    break_after: int = 0  # bytes after which the next answers break off, once each
    breaks: int = 0  # how many answers still break
    knows_ranges: bool = True
    status: int = 0  # answer everything with this
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    spoil: bytes = b""  # replaces the first bytes of large files

    def add(self, name: str, files: dict[str, bytes], **more) -> Repo:
        self.repos[name] = Repo(files, **more)
        return self.repos[name]

    def sent_ranges(self, name: str) -> list[str]:
        return [sent for _, path, sent in self.requests if path.startswith("/cdn/") and path.endswith(name)]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubDouble

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if hub.status:
            return self._refuse(hub.status, "", "in trouble")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            return self._info(match[1])
        if match := re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[2], match[4], is_cdn=bool(match[1]))
        return self._refuse(404, "", "no such page")

    def _info(self, name):
        repo = self.hub.repos.get(name)
        if repo is None:  # the hub does not tell missing from private
            return self._refuse(401, "RepoNotFound", "Repository not found")
        siblings = []
        for file, content in repo.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            row = {"rfilename": file, "size": len(content), "blobId": blob}
            if _is_large(file):
                sha256 = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(row)
        gated = "manual" if repo.gated else False
        body = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "gated": gated, "private": False}
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, name, file, *, is_cdn):
        repo = self.hub.repos.get(name)
        if repo is None or file not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if repo.gated and self.headers.get("Authorization") != "Bearer good":
            status = 403 if self.headers.get("Authorization") else 401
            return self._refuse(status, "GatedRepo", f"Access to model {name} is restricted")
        if _is_large(file) and not is_cdn:
            return self._send(302, b"", {"Location": f"{self.hub.url}/cdn{self.path}", "X-Repo-Commit": repo.commit})
        return self._content(repo.files[file], _is_large(file))

    def _content(self, content, is_large):
        if is_large and self.hub.spoil:
            content = self.hub.spoil + content[len(self.hub.spoil) :]
        headers, status, start = {"Accept-Ranges": "bytes", "ETag": '"x"'}, 200, 0
        if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and self.hub.knows_ranges:
            start, status = int(match[1]), 206
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers, slow=is_large)

    def _send(self, status, body, headers, *, slow=False):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub, sent = self.hub, 0
        breaks = slow and hub.breaks > 0
        if breaks:
            hub.breaks -= 1
        while sent < len(body):
            block = body[sent : sent + 65_536]
            if breaks and sent >= hub.break_after:
                self.close_connection = True
                return
            try:
                self.wfile.write(block)
            except OSError:  # the client was killed
                self.close_connection = True
                return
            sent += len(block)
            if slow and hub.bytes_per_second:
                time.sleep(len(block) / hub.bytes_per_second)

    def _refuse(self, status, code, message):
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message} if code else {})


def _is_large(file: str) -> bool:
    return file.endswith((".safetensors", ".gguf"))


@pytest.fixture
def hub():
    double = HubDouble()
    handler = type("Handler", (_Handler,), {"hub": double})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    double.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield double
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Compiled programs, shared by all processes: compiling them anew would be most of the time of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(home, cache, repo_root):
    """Variables of a process that has nothing of this machine's user, and finds Gemworks without an install."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "GEMWORKS_"))}
    folders = {"GEMWORKS_HOME": home, "HF_HOME": home / "hf", "GEMWORKS_CACHE": cache, "PYTHONPATH": repo_root}
    return keep | {name: str(folder) for name, folder in folders.items()}


@pytest.fixture
def gemworks(environment):
    """gemworks("list", "--json", input=...) -> CompletedProcess."""

    def run(*arguments, input="", timeout=120, **variables):
        return subprocess.run(
            [sys.executable, "-m", "gemworks", *map(str, arguments)],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment | variables,
        )

    return run


# Run first in the process: takes the terminal on stdin as its own, so that Ctrl-C is a signal, and then becomes the
# command. (pty.fork would fork this process, which may have threads.)
_OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A process in a terminal of its own. `expect` waits for a text on the screen; what came before is forgotten."""

    def __init__(self, command, env):
        self.seen = ""
        self.screen, inside = pty.openpty()
        termios.tcsetwinsize(inside, (40, 100))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, *command],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=env | {"TERM": "xterm"},
            start_new_session=True,
        )
        os.close(inside)

    def expect(self, text: str, timeout: float = 30.0) -> str:
        """Wait for `text`; returns what was on the screen up to and with it, without escape sequences."""
        end = time.monotonic() + timeout
        while text not in self._plain():
            if time.monotonic() > end:
                raise AssertionError(f"{text!r} did not come within {timeout} s; the screen has:\n{self._plain()}")
            if select.select([self.screen], [], [], 0.05)[0]:
                try:
                    data = os.read(self.screen, 65_536)
                except OSError:  # the other end is closed
                    data = b""
                if not data:
                    assert text in self._plain(), f"ended before {text!r} came; the screen has:\n{self._plain()}"
                    break
                self.seen += data.decode(errors="replace")
        before, found, after = self._plain().partition(text)
        self.seen = after
        return before + found

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def enter(self, text: str) -> None:
        self.type(text + "\r")

    def interrupt(self) -> None:
        """Press Ctrl-C, not sooner than a person would: readline loses a signal that comes while it handles a key."""
        time.sleep(0.2)
        self.type("\x03")

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code, once the process has ended."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if select.select([self.screen], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # the other end is closed
                    self.seen += os.read(self.screen, 65_536).decode(errors="replace")
            if self.process.poll() is not None:
                return self.process.returncode
        raise AssertionError(f"still running after {timeout} s; the screen has:\n{self._plain()}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)

    def _plain(self) -> str:
        text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[=>]|\x01|\x02|\x07", "", self.seen)
        return text.replace("\r", "")


@pytest.fixture
def terminal(environment):
    """terminal("run", "tiny") -> Terminal, killed at the end of the test. python=FILE runs a script instead."""
    opened = []

    def start(*arguments, python=None, **variables):
        program = [str(python)] if python else ["-m", "gemworks"]
        opened.append(Terminal([sys.executable, *program, *map(str, arguments)], environment | variables))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def wait_for():
    def wait(condition, timeout=20.0):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def scripted_repl():
    """A program that opens the REPL with a model that says what the test can foresee."""
    return Path(__file__).with_name("scripted_repl.py")


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A directory with a random chat model of 150,000 parameters and a tokenizer of bytes and letters."""
    folder = tmp_path_factory.mktemp("chat-model")
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    rows = [(name, -1000.0, 2 if name == "<unk>" else 3) for name in names]
    rows += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    rows += [(piece, -1000.0, 4) for piece in ("\n", "\n\n", "\t", "  ")]
    rows += [(letter, -float(i), 1) for i, letter in enumerate(string.ascii_letters + string.digits + ".,?!'\u2581")]
    tokenizer = Tokenizer.from_vocabulary(*map(list, zip(*rows, strict=True)))
    config = small_config(vocab_size=tokenizer.size)
    arrays = random_arrays(config, seed=1)
    arrays["embed.weight"] *= 4.0  # surer of its words, so that greedy answers do not hang on rounding
    tensors = [
        TensorSource(hf_from_ours(name), "F32", array.shape, lambda array=array: array)
        for name, array in arrays.items()
    ]
    write_shards(folder, tensors, shard_bytes=10**9)
    (folder / "config.json").write_text(json.dumps(json_from_text_config(config)))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], "bos_token_id": 2}))
    tokenizer.save(folder)
    return folder
