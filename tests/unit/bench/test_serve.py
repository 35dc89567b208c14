"""How the server is measured: what is asked, who is measured, and a rival that closes its connections."""

import asyncio
import json

import pytest

from gemworks.bench import serve
from gemworks.bench.engine_load import Timer
from gemworks.bench.serve_client import Connection
from gemworks.bench.serve_systems import Serving
from gemworks.errors import BackendError

USAGE = {"choices": [], "usage": {"completion_tokens": 2}}
EVENTS = [{"choices": [{"text": ""}]}, {"choices": [{"text": "a"}]}, USAGE]


@pytest.fixture
def plan(tmp_path):
    serving = Serving(model="none", quant="none", context=512, sequences=16, threads=1)
    return serve.Plan(serving=serving, vocab=1000, rounds=2, log=tmp_path / "log")


def test_only_the_last_of_those_that_ask_is_measured(plan):
    streams = serve.make_asking(plan, 8, 0)
    assert [len(stream) for stream in streams] == [1] * 7 + [serve.ASKED]
    assert {len(prompt) for prompt, *_ in streams[-1]} == {plan.prompt}
    assert all(len(prompt) + count <= plan.serving.context for stream in streams for prompt, count, _ in stream)
    values = {"first_s": [(len(prompt), float(i)) for i, stream in enumerate(streams) for prompt, *_ in stream]}
    assert serve.asked_again(plan, values) == [7.0] * serve.ASKED


def test_how_much_later_the_first_token_is():
    found = serve._later([{"ours": [0.5, 0.7, 0.6], "bare": [0.1, 0.2, 0.3]}, {"ours": [0.6], "bare": [0.2]}])
    assert found["p50_s"] == {"ours": 0.6, "bare": 0.2}
    assert found["later_s"] == pytest.approx(0.4) and found["later_of_rounds_s"] == pytest.approx([0.4, 0.4])
    assert not found["targets"][0]["is_met"]


async def _rival(answers: int, status: str = "200 OK", events=EVENTS):
    """A server that hangs up after so many answers; returns it, its port, and what it was asked."""
    bodies = []

    async def serve_one(reader, writer):
        for _ in range(answers):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            bodies.append(json.loads(await reader.readexactly(length)))
            writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for event in events:
                text = f"data: {json.dumps(event)}\n\n".encode()
                writer.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1], bodies


@pytest.mark.parametrize("answers", [1, 3])
def test_a_connection_that_is_closed_after_an_answer_is_opened_again(answers):
    async def ask():
        server, port, bodies = await _rival(answers)
        async with server, Connection("127.0.0.1", port, Timer()) as connection:
            found = [await connection.ask({"prompt": [i]}) for i in range(3)]
        return found, bodies

    found, bodies = asyncio.run(ask())
    assert [body["prompt"] for body in bodies] == [[0], [1], [2]]
    assert all(one.status == 200 and one.tokens == 2 and 0 < one.ttft_s <= one.last_s - one.sent_s for one in found)


def _ask_all(events, streams):
    async def ask():
        server, port, _ = await _rival(2, events=events)
        async with server:
            where = type("Where", (), {"host": "127.0.0.1", "port": port, "name": "double"})()
            return await serve._all_clients(where, "none", streams)

    return asyncio.run(ask())


def test_answers_without_text_have_tokens_and_no_first_text():
    streams = [[([1, 2, 3], 2, 0.0), ([1, 2], 2, 0.01)]]
    values = _ask_all(EVENTS, streams)
    assert [length for length, _ in values["first_s"]] == [3, 2]
    assert (values["answer_tokens"], values["prompt_tokens"]) == (4, 5)
    with pytest.raises(BackendError, match="2 of 2 answers have no text"):
        _ask_all([EVENTS[0], USAGE], streams)
    with pytest.raises(BackendError, match="no tokens"):
        _ask_all(EVENTS[:1], streams)
