"""How the command line finds a server, and what it says where none is; `gemworks ps` and `stop` over a double."""

import http.server
import json
import socket
import threading

import pytest

from gemworks.cli.main import run_command
from gemworks.cli.ps import row
from gemworks.errors import AccessError, BackendError, ConfigError, NotFoundError
from gemworks.server import client


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("gpu", "http://gpu:11434"),
        ("gpu:8000", "http://gpu:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("::1", "http://[::1]:11434"),
        ("http://gpu", "http://gpu:80"),
        ("https://gpu/", "https://gpu:443"),
        ("https://gpu:8443/gemworks/", "https://gpu:8443/gemworks"),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(text, url):
    assert str(client.address(text)) == url


@pytest.mark.parametrize("text", ["ftp://gpu", "gpu:port", "gpu:99999", "two words", "http://gpu?x=1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="GEMWORKS_HOST must be"):
        client.address(text)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers what the test put into `answers`: path -> (status, body)."""

    answers: dict
    seen: list

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.path, json.loads(body or b"null"), self.headers.get("Authorization")))
        status, told = self.answers[self.path]
        told = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)


@pytest.fixture
def double(monkeypatch):
    handler = type("Handler", (_Handler,), {"answers": {}, "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("GEMWORKS_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("GEMWORKS_API_KEY", raising=False)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def nobody(monkeypatch):
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GEMWORKS_HOST", f"127.0.0.1:{bound.getsockname()[1]}")
        yield


MODEL = {
    "name": "tiny:latest",
    "size": 1_086_400,
    "details": {"quantization_level": "BF16"},
    "context_length": 1024,
    "expires_at": "1970-01-01T01:00:00Z",
    "users": 0,
}


@pytest.mark.parametrize(
    ("change", "now", "until"),
    [
        ({}, 0, "60 minutes from now"),
        ({}, 3500, "100 seconds from now"),
        ({}, -36_000, "11 hours from now"),
        ({}, 3700, "stopping"),
        ({"users": 2}, 0, "in use"),
        ({"expires_at": "9999-12-31T23:59:59Z"}, 0, "for ever"),
        ({"expires_at": "9999-12-31T23:59:59Z", "users": 2}, 0, "for ever"),
        ({"expires_at": None}, 0, "-"),
    ],
)
def test_a_row_of_the_table(change, now, until):
    users = str(change.get("users", 0))
    assert row(MODEL | change, now) == ("tiny", "1 MB", "BF16", "1,024", until, users)


def test_ollamas_own_server_is_shown_too():
    assert row({"name": "llama3:8b", "size": 5_000_000_000}, 0) == ("llama3:8b", "5.0 GB", "-", "-", "-", "-")


def test_ps_shows_a_table_and_json(double, capsys):
    double.answers["/api/ps"] = (200, {"models": [MODEL | {"expires_at": "9999-12-31T23:59:59Z"}]})
    assert run_command(["ps"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "SIZE", "FORMAT", "CONTEXT", "UNTIL", "USERS"]
    assert line.split() == ["tiny", "1", "MB", "BF16", "1,024", "for", "ever", "0"]
    assert run_command(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["name"] == "tiny:latest"


def test_stop_unloads_and_says_what_was_there(double, capsys):
    double.answers["/api/ps"] = (200, {"models": [MODEL, MODEL | {"name": "busy:latest", "users": 1}]})
    double.answers["/api/generate"] = (200, {"done": True})
    assert run_command(["stop", "tiny", "busy", "other"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny is out of memory.",
        "busy leaves memory when 1 answer is done.",
        "other was not in memory.",
    ]
    sent = [body for method, path, body, _ in double.seen if path == "/api/generate"]
    assert sent[0] == {"model": "tiny", "keep_alive": 0, "stream": False}


@pytest.mark.parametrize("command", [["ps"], ["stop", "tiny"]])
def test_one_clear_error_where_no_server_runs(nobody, capsys, command):
    assert run_command(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: no server answers at http://127.0.0.1:")
    assert "gemworks serve MODEL" in err
    assert "Traceback" not in err


def test_what_a_server_refuses_is_told(double, monkeypatch):
    double.answers["/x"] = (404, {"error": "model 'x' not found."})
    with pytest.raises(NotFoundError, match="model 'x' not found"):
        client.ask("POST", "/x", {})
    double.answers["/x"] = (401, {"error": "an API key is needed."})
    with pytest.raises(AccessError, match="GEMWORKS_API_KEY"):
        client.ask("GET", "/x")
    double.answers["/x"] = (500, {"error": "no."})
    with pytest.raises(BackendError, match="answered 500: no"):
        client.ask("GET", "/x")
    double.answers["/x"] = (200, b"<html>")
    with pytest.raises(BackendError, match="not as a Gemworks server does"):
        client.ask("GET", "/x")
    monkeypatch.setenv("GEMWORKS_API_KEY", "secret")
    double.answers["/x"] = (200, {})
    assert client.ask("GET", "/x") == {}
    assert double.seen[-1][3] == "Bearer secret"
