"""Headers that come slowly, or never: the connection is closed in time, and nobody else's is."""

import asyncio
import socket
import threading
import time

import pytest
import uvicorn

from gemworks.server.protocol import with_timeout
from gemworks.server.settings import LimitSettings, Settings

TIMEOUT_S, STREAM_S = 0.3, 0.9
HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n"


async def app(scope, receive, send):
    """Answers "done", or at /slow piece by piece for longer than headers may take."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if scope["path"] == "/slow":
        for _ in range(9):
            await asyncio.sleep(STREAM_S / 9)
            await send({"type": "http.response.body", "body": b".", "more_body": True})
    await send({"type": "http.response.body", "body": b"done", "more_body": False})


@pytest.fixture(scope="module")
def address():
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=with_timeout(TIMEOUT_S), ws="none", lifespan="off", log_config=None, timeout_keep_alive=30
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield bound.getsockname()
    server.should_exit = True
    thread.join(10)
    bound.close()


@pytest.fixture
def connection(address):
    with socket.create_connection(address, timeout=10) as made:
        yield made


def rest(connection) -> tuple[bytes, float]:
    """What comes until the server closes the connection, and after how many seconds it did."""
    begun, got = time.monotonic(), b""
    while piece := connection.recv(4096):
        got += piece
    return got, time.monotonic() - begun


def test_who_sends_nothing_is_left(connection):
    got, seconds = rest(connection)
    assert got == b"" and TIMEOUT_S * 0.8 < seconds < 5


def test_a_header_now_and_then_does_not_keep_a_connection(connection):
    begun = time.monotonic()
    connection.sendall(HEAD)
    connection.settimeout(TIMEOUT_S / 6)
    got = b""
    while time.monotonic() - begun < 5:
        try:
            connection.sendall(b"x-more: y\r\n")
            piece = connection.recv(4096)
        except TimeoutError:
            continue
        except ConnectionError:
            break
        if not piece:
            break
        got += piece
    assert got.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"limits.header_timeout_s" in got
    assert time.monotonic() - begun < 5


def test_empty_lines_do_not_either(connection):
    begun = time.monotonic()
    connection.sendall(b"\r\n")
    rest(connection)
    assert time.monotonic() - begun < 5


def test_headers_in_time_are_answered(connection):
    connection.sendall(HEAD)
    time.sleep(TIMEOUT_S / 3)
    connection.sendall(b"connection: close\r\n\r\n")
    got, _ = rest(connection)
    assert got.startswith(b"HTTP/1.1 200 OK") and b"done" in got


def test_the_next_request_of_a_connection_is_timed_too(connection):
    connection.sendall(HEAD + b"\r\n")
    got = b""
    while b"done" not in got:
        got += connection.recv(4096)
    time.sleep(TIMEOUT_S * 2)  # idle between requests: uvicorn's own limit, 30 s here
    connection.sendall(HEAD)
    got, seconds = rest(connection)
    assert b"408" in got and seconds < 5


def test_an_answer_under_way_is_not_cut(connection):
    """Even where a second request was begun beside it and never comes."""
    connection.sendall(HEAD.replace(b"/ ", b"/slow ", 1) + b"\r\n" + HEAD)
    begun, got = time.monotonic(), b""
    while b"done" not in got:
        piece = connection.recv(4096)
        assert piece, got
        got += piece
    assert time.monotonic() - begun > TIMEOUT_S * 2 and got.count(b"\r\n.\r\n") == 9
    got, seconds = rest(connection)
    assert b"408" in got and seconds < 5


def test_the_setting_reaches_uvicorn():
    from gemworks.server.run import _config

    made = _config(Settings(limits=LimitSettings(header_timeout_s=7)), app)
    made.load()
    assert made.http_protocol_class.header_timeout_s == 7
