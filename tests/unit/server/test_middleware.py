"""What every request passes: id, key, origin, length; and that streams pass untouched, chunk by chunk."""

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from gemworks.server.keys import add_key
from gemworks.server.middleware import add_middlewares
from gemworks.server.services import Services
from gemworks.server.settings import CorsSettings, LimitSettings, LogSettings, MetricsSettings, ModelSettings, Settings

GONE = object()  # as a part of a body: the client closes the connection


class Sent:
    """The messages that came out of an app."""

    def __init__(self):
        self.messages: list[dict] = []

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> dict:
        return json.loads(self.body)["error"]


def _routes(services: Services) -> list[Route]:
    async def read(request: Request):
        return JSONResponse({"length": len(await request.body()), "caller": request.state.caller.name})

    async def call(request: Request):
        async with services.calls.admit(request, route="chat", model="tiny") as call:
            call.charge(5, 5)
            call.token()
            call.done()
        return JSONResponse({"key": call.key})

    async def breaks(request: Request):
        raise KeyError("my secret prompt")

    async def stream(request: Request):
        async def pieces():
            for i in range(3):
                yield f"{i}\n".encode()

        return StreamingResponse(pieces())

    paths = {"/read": read, "/call": call, "/breaks": breaks, "/api/breaks": breaks, "/stream": stream, "/": read}
    paths |= {"/metrics": read, "/health/live": read, "/page/x.js": read, "/v1/models": read, "/api/blobs/x": read}
    return [Route(path, handler, methods=["GET", "POST"]) for path, handler in paths.items()]


@pytest.fixture
def serving(tmp_path):
    """serving(limits=...) -> ask(path, headers=..., body=...) -> Sent, over a small app behind all middlewares."""
    opened = []

    def make(**settings):
        settings = {"usage_file": tmp_path / "usage", "logs": LogSettings(file=tmp_path / "log")} | settings
        services = Services(Settings(models=ModelSettings(names=("tiny",)), **settings))
        opened.append(services)

        app = Starlette(routes=_routes(services))
        add_middlewares(app, services.settings, services)

        def ask(path, *, headers=None, body=(b"",), method="POST", send=None) -> Sent:
            sent, parts = Sent(), iter(body)
            following = next(parts, None)

            async def receive():
                nonlocal following
                if isinstance(following, float):  # a pause
                    await asyncio.sleep(following)
                    following = next(parts, None)
                if following is GONE:
                    return {"type": "http.disconnect"}
                if following is None:
                    await asyncio.sleep(3600)
                part, following = following, next(parts, None)
                return {"type": "http.request", "body": part, "more_body": following is not None}

            async def collect(message):
                sent.messages.append(message)
                if send is not None:
                    await send(message)

            raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
            scope = {
                "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
                "headers": raw, "client": ("10.0.0.9", 1), "server": ("127.0.0.1", 1), "scheme": "http",
                "root_path": "", "http_version": "1.1",
            }  # fmt: skip
            asyncio.run(asyncio.wait_for(app(scope, receive, collect), 20))
            return sent

        ask.services = services  # type: ignore[attr-defined]
        return ask

    yield make
    for one in opened:
        one.close()


def test_a_request_keeps_its_id_or_gets_one(serving):
    ask = serving()
    assert ask("/read", headers={"X-Request-Id": "abc-1.2:x_3"}).headers["x-request-id"] == "abc-1.2:x_3"
    for bad in ("", "a b", "x" * 200, 'a"', "\u00e4"):
        made = ask("/read", headers={"X-Request-Id": bad} if bad.isascii() else {}).headers["x-request-id"]
        assert made.startswith("req_") and len(made) == 28


def test_keys_are_asked_for_everywhere_but_on_the_page_and_by_probes(serving, tmp_path):
    key = add_key(tmp_path / "keys", "ann")
    ask = serving(keys_file=tmp_path / "keys")
    for path in ("/read", "/v1/models", "/call", "/api/breaks", "/nowhere", "/pagex", "/health/livex"):
        refused = ask(path)
        assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer", path
        assert "x-request-id" in refused.headers
    for path in ("/", "/metrics", "/health/live", "/page/x.js"):
        assert ask(path).status == 200, path
    assert json.loads(ask("/read", headers={"Authorization": f"Bearer {key}"}).body)["caller"] == "ann"
    assert ask("/read", headers={"authorization": f"bearer  {key} "}).status == 200
    for wrong in (f"Basic {key}", key, "Bearer", "Bearer x", f"Bearer {key}x"):
        assert ask("/read", headers={"Authorization": wrong}).status == 401
    assert json.loads(ask("/api/breaks").body) == {
        "error": "an API key is needed: send it as Authorization: Bearer KEY."
    }
    assert ask("/read").error["code"] == "invalid_api_key"


def test_metrics_may_need_a_key(serving, tmp_path):
    add_key(tmp_path / "keys", "ann")
    assert serving(keys_file=tmp_path / "keys", metrics=MetricsSettings(needs_key=True))("/metrics").status == 401


def test_a_body_of_told_length_is_refused_before_it_is_read(serving):
    ask = serving(limits=LimitSettings(body_bytes=10))
    refused = ask("/read", headers={"Content-Length": "11"}, body=[b"", b"x" * 11, b"y"])
    assert refused.status == 413 and refused.error["code"] == "body_too_large"
    assert refused.headers["connection"] == "close" and "10 bytes" in refused.error["message"]
    assert json.loads(ask("/read", headers={"Content-Length": "10"}, body=[b"x" * 10]).body)["length"] == 10


def test_a_body_of_untold_length_is_refused_as_soon_as_it_is_too_long(serving):
    ask = serving(limits=LimitSettings(body_bytes=10))
    taken = []

    def parts():
        for i in range(1000):
            taken.append(i)
            yield b"x" * 4

    refused = ask("/read", body=parts())
    assert refused.status == 413 and refused.headers["connection"] == "close"
    assert len(taken) <= 8, "after the refusal at most as much again is let in, for the client to read the answer"


def test_model_files_have_no_limit_here(serving):
    ask = serving(limits=LimitSettings(body_bytes=10))
    assert ask("/api/blobs/x", headers={"Content-Length": "100"}, body=[b"x" * 100]).status == 200


def test_a_body_that_does_not_come_is_given_up(serving, monkeypatch):
    ask = serving(limits=LimitSettings(body_timeout_s=1, body_bytes=100))
    refused = ask("/read", body=[b"x", 30.0, b"y"])
    assert refused.status == 408 and "within 1 s" in refused.error["message"]


def test_a_client_that_goes_while_it_sends_is_no_defect(serving, tmp_path):
    ask = serving()
    assert ask("/read", body=[b"x", GONE]).messages == []
    ask.services.close()
    line = json.loads((tmp_path / "log").read_text().splitlines()[-2])
    assert (line["event"], line["level"], line["error"]) == ("request", "info", "ClientDisconnect")


def test_what_a_route_did_not_foresee_is_500_with_the_id_and_the_log_has_no_text(serving, tmp_path):
    ask = serving()
    broken = ask("/breaks", headers={"X-Request-Id": "r1"})
    assert broken.status == 500 and "r1" in broken.error["message"] and "secret" not in broken.error["message"]
    assert isinstance(json.loads(ask("/api/breaks").body)["error"], str)
    ask.services.close()
    text = (tmp_path / "log").read_text()
    assert '"defect"' in text and "KeyError" in text and "secret" not in text


def test_streams_pass_chunk_by_chunk(serving):
    seen = []

    async def look(message):
        seen.append(message)

    ask = serving()
    sent = ask("/stream", send=look)
    assert [message["body"] for message in sent.messages[1:]] == [b"0\n", b"1\n", b"2\n", b""]
    assert "content-length" not in sent.headers


def test_a_client_that_reads_nothing_is_given_up(serving, tmp_path):
    from gemworks.server.record import SlowReader

    async def stuck(message):
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    ask = serving(limits=LimitSettings(stream_idle_s=1))
    with pytest.raises(Exception) as caught:
        ask("/stream", send=stuck)
    assert isinstance(caught.value, SlowReader) or caught.group_contains(SlowReader)


def test_limits_are_told_in_headers(serving):
    ask = serving(limits=LimitSettings(requests_per_minute=1, tokens_per_minute=100))
    first = ask("/call")
    assert first.status == 200 and json.loads(first.body) == {"key": "10.0.0.9"}
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    assert "x-ratelimit-limit-requests" not in ask("/read").headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:11434"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example:11434"}, 403),
        ({"Host": "chat.example"}, 200),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:1"}, 200),
        ({"Host": "127.0.0.1:1", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "127.0.0.1:1", "Origin": "https://evil.example"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "https://localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "https://mine.example"}, 200),
        ({"Host": "127.0.0.1:1", "Origin": "app://obsidian.md"}, 200),
    ],
)
def test_without_keys_pages_and_names_of_others_are_refused(serving, headers, status):
    ask = serving(hosts=("chat.example",), cors=CorsSettings(origins=("https://mine.example",)))
    assert ask("/read", headers=headers).status == status


def test_with_keys_a_name_or_origin_refuses_nobody(serving, tmp_path):
    key = add_key(tmp_path / "keys", "ann")
    ask = serving(keys_file=tmp_path / "keys")
    headers = {"Host": "chat.example", "Origin": "https://other.example", "Authorization": f"Bearer {key}"}
    answer = ask("/read", headers=headers)
    assert answer.status == 200 and "access-control-allow-origin" not in answer.headers


def test_bound_to_every_address_any_name_may_be_ours(serving):
    assert serving(host="0.0.0.0")("/read", headers={"Host": "gpu-box.lan:11434"}).status == 200


def test_cors_answers_preflights_and_lets_pages_read_errors(serving, tmp_path):
    add_key(tmp_path / "keys", "ann")
    ask = serving(keys_file=tmp_path / "keys", cors=CorsSettings(origins=("https://mine.example",)))
    asked = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}
    preflight = ask("/v1/models", method="OPTIONS", headers=asked | {"Access-Control-Request-Headers": "authorization"})
    assert preflight.status == 200 and preflight.headers["access-control-allow-origin"] == "https://mine.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = ask("/v1/models", headers={"Origin": "https://mine.example"})
    assert refused.status == 401 and refused.headers["access-control-allow-origin"] == "https://mine.example"
    other = ask("/v1/models", method="OPTIONS", headers=asked | {"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_what_was_refused_before_it_was_routed_is_counted_under_its_route(serving, tmp_path):
    add_key(tmp_path / "keys", "ann")
    ask = serving(keys_file=tmp_path / "keys")
    ask("/v1/models"), ask("/nowhere")
    value = ask.services.metrics.registry.get_sample_value
    assert value("gemworks_requests_total", {"route": "/v1/models", "status": "401", "model": ""}) == 1
    assert value("gemworks_requests_total", {"route": "other", "status": "401", "model": ""}) == 1
