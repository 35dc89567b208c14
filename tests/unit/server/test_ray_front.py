"""What the address before several replicas does when one dies; replicas are generators here, and there is no Ray."""

import asyncio
import json
from typing import Any

from gemworks.server.ray_app import ATTEMPTS, Front

STREAM = (200, [(b"content-type", b"text/event-stream; charset=utf-8")])
WHOLE = (200, [(b"content-type", b"application/json")])


class Death(Exception):
    """The replica is gone."""


def replica(pieces: list[Any], closed: list[int] | None = None):
    """An answer: a head, pieces of a body, and perhaps what it raises."""

    async def answer():
        try:
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            if closed is not None:
                closed.append(1)

    return answer()


async def asked(front: Front, *, leaves_after: int | None = None) -> tuple[int, bytes]:
    """Ask for something; returns status and body. leaves_after: the client goes after so many messages."""
    sent: list[dict[str, Any]] = []
    gone = asyncio.Event()
    bodies = iter([{"type": "http.request", "body": b'{"prompt": "x"}', "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (message := next(bodies, None)) is not None:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if leaves_after is not None and len(sent) >= leaves_after:
            gone.set()
            await asyncio.sleep(10)

    await asyncio.wait_for(front({"type": "http", "path": "/v1/completions", "headers": []}, receive, send), 30)
    status = sent[0]["status"] if sent else 0
    return status, b"".join(message.get("body", b"") for message in sent[1:])


def front_of(*answers: list[Any], closed: list[int] | None = None) -> tuple[Front, list[tuple]]:
    calls: list[tuple] = []
    left = iter(answers)

    def ask(scope, body, keys):
        calls.append((scope, body, keys))
        return replica(next(left), closed)

    return Front(ask, lambda error: isinstance(error, Death)), calls


def test_an_answer_is_passed_on_piece_by_piece():
    front, calls = front_of([STREAM, b"data: a\n\n", b"data: [DONE]\n\n"])
    assert asyncio.run(asked(front)) == (200, b"data: a\n\ndata: [DONE]\n\n")
    assert calls[0][1] == b'{"prompt": "x"}'


def test_a_request_that_had_not_begun_goes_to_another_replica():
    """Also where the head had come and no piece of the body."""
    front, calls = front_of([Death()], [STREAM, Death()], [STREAM, b"data: a\n\n"])
    assert asyncio.run(asked(front)) == (200, b"data: a\n\n")
    assert len(calls) == 3


def test_a_stream_that_had_begun_ends_with_an_error_and_is_not_begun_again():
    front, calls = front_of([STREAM, b"data: a\n\n", Death()], [STREAM, b"data: b\n\n"])
    status, body = asyncio.run(asked(front))
    first, last, _ = body.split(b"\n\n")
    assert (status, first) == (200, b"data: a")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "replica_lost"
    assert len(calls) == 1


def test_where_every_replica_dies_the_client_is_told_to_come_back():
    front, calls = front_of(*[[Death()] for _ in range(ATTEMPTS)])
    status, body = asyncio.run(asked(front))
    assert status == 503
    assert json.loads(body)["error"]["code"] == "no_replica"
    assert len(calls) == ATTEMPTS


def test_an_answer_without_a_body_is_an_answer():
    front, _ = front_of([(204, [])])
    assert asyncio.run(asked(front)) == (204, b"")


def test_who_leaves_ends_the_replicas_work():
    closed: list[int] = []
    front, _ = front_of([STREAM, b"data: a\n\n", b"data: b\n\n"], closed=closed)
    asyncio.run(asked(front, leaves_after=2))
    assert closed == [1]


def test_an_error_that_is_no_death_is_not_tried_again():
    front, calls = front_of([ValueError("defect")], [WHOLE, b"{}"])
    try:
        asyncio.run(asked(front))
        raise AssertionError("nothing was raised")
    except ValueError:
        assert len(calls) == 1
