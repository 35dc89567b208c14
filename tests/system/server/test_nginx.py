"""deploy/nginx.conf in a real nginx before a real server: tokens come as they are made, and who leaves has left."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "nginx.conf"
_SELF_SIGNED = ("-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=llm.example.com")
ASKED = {"model": "tiny", "prompt": "the red cat sings and ", "max_tokens": 200, "temperature": 0, "stream": True}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def nginx(folder: Path, upstream: str, changes: dict[str, str] | None = None) -> Iterator[int]:
    """nginx with the configuration as it is shipped, but for names, files and ports of this test; yields its port."""
    program, openssl = shutil.which("nginx") or shutil.which("/usr/sbin/nginx"), shutil.which("openssl")
    if program is None or openssl is None:
        pytest.skip("nginx and openssl are not both on this machine (apt-get install nginx-light openssl)")
    port, certificate, key = free_port(), folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", *_SELF_SIGNED, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    text = CONFIGURATION.read_text(encoding="utf-8")
    own = {
        "server 127.0.0.1:11434": f"server {upstream}",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "        listen [::]:443 ssl http2;\n": "",
        "/etc/ssl/llm.example.com.pem": str(certificate),
        "/etc/ssl/private/llm.example.com.key": str(key),
        "/var/log/nginx/gemworks.log": str(folder / "access.log"),
        "proxy_set_header Host $host": 'proxy_set_header Host "localhost"',  # the server of the tests has no keys
    }
    for old, new in {**own, **(changes or {})}.items():
        assert old in text, old
        text = text.replace(old, new)
    file = folder / "nginx.conf"
    file.write_text(text, encoding="utf-8")
    more = f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;"
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen([program, "-p", str(folder), "-c", str(file), "-g", more], stderr=stderr)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "stderr").read_text(encoding="utf-8")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def asked(port: int) -> Iterator[tuple[http.client.HTTPResponse, float]]:
    """The answer to a request that is closed afterwards, read or not, and when it was asked for."""
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=plain, timeout=60)
    connection.connect()  # the handshake takes as long as a short answer
    began = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(ASKED), {"Content-Type": "application/json"})
    with contextlib.closing(connection), connection.getresponse() as response:
        yield response, began


def arrivals(port: int) -> tuple[float, bytes]:
    """Ask and read an answer; returns in which share of the time it came piece by piece, and the whole of it."""
    found = []
    with asked(port) as (response, began):
        assert response.status == 200
        assert response.headers["x-request-id"]
        while piece := response.read1(65536):
            found.append((time.monotonic(), piece))
    first, last = found[0][0], found[-1][0]
    return (last - first) / (last - began), b"".join(piece for _, piece in found)


def running(url: str) -> float:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(r"^gemworks_calls_running (\S+)$", text, re.M)[1])  # type: ignore[index]


def test_tokens_come_through_nginx_as_they_are_made(server, tmp_path):
    """Pieces come over most of the time that the answer takes, and all of it comes."""
    with nginx(tmp_path, urlsplit(server.url).netloc) as port:
        for _ in range(3):  # the first ones make programs: whole prompts, cached ones
            arrivals(port)
        share, answer = arrivals(port)
    assert answer.split(b"\n\n")[-2] == b"data: [DONE]"
    assert share > 0.4
    assert "POST /v1/completions 200" in (tmp_path / "access.log").read_text(encoding="utf-8")


def test_a_proxy_that_buffers_is_told_apart(server, tmp_path):
    """The test above can fail: with nginx's own defaults the same answer comes in one lump at the end."""
    changes = {
        "proxy_buffering off;": "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;",
        "proxy_http_version 1.1;": "proxy_http_version 1.0;",
        "proxy_read_timeout 600s;": "proxy_buffers 8 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 64k;",
    }
    with nginx(tmp_path, urlsplit(server.url).netloc, changes) as port:
        for _ in range(3):  # the first ones make programs: whole prompts, cached ones
            arrivals(port)
        share, answer = arrivals(port)
    assert b"[DONE]" in answer
    assert share < 0.2


def test_who_leaves_through_nginx_is_computed_for_no_longer(server, tmp_path):
    with nginx(tmp_path, urlsplit(server.url).netloc) as port:
        with asked(port) as (response, _):
            response.read1(10)
        until = time.monotonic() + 20
        while running(server.url) and time.monotonic() < until:
            time.sleep(0.02)
        assert running(server.url) == 0


def test_metrics_are_not_for_the_world(server, tmp_path):
    """nginx's own machine may read them, others get 403."""
    local = {"allow 127.0.0.1;": "deny 127.0.0.1;"}
    with nginx(tmp_path, urlsplit(server.url).netloc, local) as port:
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=plain, timeout=60)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 403
        connection.close()
