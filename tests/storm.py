"""Clients that ask a server all sorts of things over raw sockets and behave badly: drop, dawdle, send rubbish.

A `Question` is a request that can be answered; `alone` asks one and returns its text. A `Storm` sends many questions
from many clients at once, each in a manner drawn at random, and collects what came: a status, and the text where an
answer was complete. What is asked is drawn from a seed; when things happen is not.
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

ALLOWED = {200, 400, 404, 405, 413, 415, 422, 429, 503}
# Between log-probabilities. Keys and values in bf16 make an answer beside others differ from the one alone by 0.01 at
# times (docs/numerics.md, chunks in bf16 pairs).
MARGIN = 0.1
CALM = 120  # seconds a well-behaved client waits for the next piece before the test fails

# Bodies that no request is; None sends no body at all.
RUBBISH: list[bytes | None] = [
    None,
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"{}",
    b"\xff\xfe\x00",
    b'{"prompt": }',
    b'{"prompt": 7}',
    b'{"prompt": "a", "max_tokens": -1}',
    b'{"prompt": "a", "max_tokens": "many"}',
    b'{"prompt": "a", "max_tokens": 1e999}',
    b'{"prompt": "a", "max_tokens": 99999999999999999999999}',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": {"a": []}}',
    b'{"prompt": "\\ud800", "stop": 5}',
    b'{"prompt": [1e300, -5]}',
    b'{"prompt": [-1, 999999999]}',
    b'{"prompt": "a", "logit_bias": {"x": 1}}',
    b'{"prompt": "a", "n": 0}',
    b'{"prompt": "a", "n": 100000}',
    b'{"messages": "hello", "prompt": {}}',
    b'{"messages": [{"role": "nobody", "content": 1}], "prompt": false}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}',
    b'{"model": "no-such-model", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}',
    b'{"model": "../../etc/passwd", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}',
    b"[" * 2000 + b"]" * 2000,
    b"[" * 200_000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    json.dumps({"prompt": "word " * 5000}).encode(),
]
NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS on a plain port
    b"GET\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: many\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /v1/models HTTP/9.9\r\n\r\n",
    b"\x00" * 64 + b"\r\n\r\n",
]
PATHS = ("/v1/completions", "/v1/chat/completions", "/api/generate", "/api/chat", "/v1/embeddings", "/tokenize")


@dataclass(frozen=True, slots=True)
class Question:
    """A request that can be answered, greedy, so that its answer is known."""

    path: str
    prompt: str
    max_tokens: int

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The request's JSON."""
        if self.path.startswith("/api/"):
            options = {"temperature": 0, "num_predict": self.max_tokens}
            return {"model": "tiny", "prompt": self.prompt, "raw": True, "stream": stream, "options": options}
        more = {"max_tokens": self.max_tokens, "temperature": 0, "stream": stream, "model": "tiny"}
        if self.path.endswith("chat/completions"):
            return {"messages": [{"role": "user", "content": self.prompt}]} | more
        return {"prompt": self.prompt} | more


def draw_questions(count: int, seed: int) -> list[Question]:
    """Return questions of random lengths, some with a beginning that others have too."""
    rng = random.Random(seed)
    words = ["the", "sun", "a red cat", "small", "house", "sings", "and", "under seven", "blue", "rivers", "old music"]
    shared = " ".join(rng.choices(words, k=40))
    paths = ("/v1/completions", "/v1/chat/completions", "/api/generate")
    found = []
    for i in range(count):
        prompt = " ".join(rng.choices(words, k=rng.randint(1, 60)))
        found.append(Question(paths[i % 3], f"{shared} {prompt}" if rng.random() < 0.3 else prompt, rng.randint(1, 40)))
    return found


@dataclass
class Storm:
    """`count` requests by `clients` at once. `expected`: a question's answer when it was asked alone."""

    host: str
    port: int
    expected: dict[Question, str]
    seed: int = 0
    statuses: Counter = field(default_factory=Counter)
    manners: Counter = field(default_factory=Counter)
    complete: int = 0
    wrong: list[str] = field(default_factory=list)

    async def rage(self, count: int, clients: int) -> None:
        """Send everything and wait until all clients are through."""
        rng = random.Random(self.seed)
        manners = [
            *(self._whole, self._whole, self._streamed, self._streamed, self._slow, self._cancelled, self._cancelled),
            *(self._dropped, self._pipelined, self._rubbish, self._rubbish, self._not_http),
        ]
        turns = iter([(rng.choice(manners), random.Random(rng.random())) for _ in range(count)])

        async def client() -> None:
            for manner, own in turns:
                self.manners[manner.__name__.strip("_")] += 1
                try:
                    await asyncio.wait_for(manner(own), 4 * CALM)
                except (AssertionError, TimeoutError, OSError, EOFError) as error:
                    self.wrong.append(f"{manner.__name__}: {type(error).__name__}: {error}"[:300])

        await asyncio.gather(*(client() for _ in range(clients)))

    def _question(self, rng: random.Random) -> Question:
        return rng.choice(list(self.expected))

    async def _whole(self, rng: random.Random) -> None:
        question = self._question(rng)
        async with connected(self.host, self.port) as (reader, writer):
            for _ in range(rng.randint(1, 2)):  # a connection that is kept
                writer.write(post(question.path, question.body(stream=False)))
                self._check(question, *await read_answer(reader))

    async def _streamed(self, rng: random.Random) -> None:
        question = self._question(rng)
        async with connected(self.host, self.port) as (reader, writer):
            writer.write(post(question.path, question.body(stream=True)))
            self._check(question, *await read_answer(reader))

    async def _slow(self, rng: random.Random) -> None:
        question = self._question(rng)
        async with connected(self.host, self.port, receive_bytes=1024) as (reader, writer):
            writer.write(post(question.path, question.body(stream=True)))
            self._check(question, *await read_answer(reader, pause_s=rng.uniform(0, 0.02)))

    async def _cancelled(self, rng: random.Random) -> None:
        """Leaves before, in or after the answer; half of these without a goodbye."""
        question = self._question(rng)
        async with connected(self.host, self.port, abrupt=rng.random() < 0.5) as (reader, writer):
            writer.write(post(question.path, question.body(stream=rng.random() < 0.7)))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(rng.choice((1, 100, 500, 2000))), rng.uniform(0, 0.15))

    async def _dropped(self, rng: random.Random) -> None:
        """Sends half of a request."""
        question = self._question(rng)
        whole = post(question.path, question.body(stream=True))
        async with connected(self.host, self.port, abrupt=rng.random() < 0.5) as (_, writer):
            writer.write(whole[: rng.randint(1, len(whole) - 1)])
            await writer.drain()
            await asyncio.sleep(rng.uniform(0, 0.05))

    async def _pipelined(self, rng: random.Random) -> None:
        """Sends several requests at once on one connection; answers come in order."""
        questions = [self._question(rng) for _ in range(rng.randint(2, 4))]
        streams = [rng.random() < 0.5 for _ in questions]
        async with connected(self.host, self.port) as (reader, writer):
            asked = zip(questions, streams, strict=True)
            writer.write(b"".join(post(one.path, one.body(stream=stream)) for one, stream in asked))
            for question in questions:
                self._check(question, *await read_answer(reader))

    async def _rubbish(self, rng: random.Random) -> None:
        body, path = rng.choice(RUBBISH), rng.choice(PATHS)
        async with connected(self.host, self.port) as (reader, writer):
            writer.write(post_bytes(path, body))
            status, _, text = await read_answer(reader)
            self.statuses[status] += 1
            assert status in ALLOWED, f"{path} {body!r:.80} gave {status}: {text!r:.120}"

    async def _not_http(self, rng: random.Random) -> None:
        sent = rng.choice(NOT_HTTP)
        async with connected(self.host, self.port) as (reader, writer):
            writer.write(sent)
            with contextlib.suppress(TimeoutError, ConnectionError):
                said = await asyncio.wait_for(reader.read(200), 0.2)
                assert not said.startswith(b"HTTP/1.1 5"), f"{sent!r:.60} gave {said!r:.80}"

    def _check(self, question: Question, status: int, kind: str, body: bytes) -> None:
        self.statuses[status] += 1
        assert status in (200, 429, 503), f"{question.path} gave {status}: {body!r:.200}"
        if status != 200:
            return
        text = answer_text(question, kind, body)
        assert text is not None, f"{question.path}: an answer without an end: {body!r:.200}"
        self.complete += 1
        expected = self.expected[question]
        assert text == expected, f"{question.path} {question.prompt!r:.60}: {text!r} beside others, {expected!r} alone"


def alone(host: str, port: int, question: Question, *, stream: bool = False) -> str:
    """Ask a question and return its answer's text."""

    async def ask() -> str:
        async with connected(host, port) as (reader, writer):
            writer.write(post(question.path, question.body(stream=stream)))
            status, kind, body = await read_answer(reader)
            assert status == 200, body
            text = answer_text(question, kind, body)
            assert text is not None
            return text

    return asyncio.run(ask())


def is_clear(host: str, port: int, question: Question) -> bool:
    """Whether every token of a question's answer is the likeliest by far: no rounding can make it another one.

    Asked through OpenAI's API, where the continued text is the same.
    """
    path = question.path if question.path.startswith("/v1/") else "/v1/completions"
    same = Question(path, question.prompt, question.max_tokens)
    more = {"logprobs": True, "top_logprobs": 2} if path.endswith("chat/completions") else {"logprobs": 2}

    async def ask() -> dict[str, Any]:
        async with connected(host, port) as (reader, writer):
            writer.write(post(path, same.body(stream=False) | more))
            status, _, body = await read_answer(reader)
            assert status == 200, body
            return json.loads(body)["choices"][0]["logprobs"]

    scores = asyncio.run(ask())
    if "content" in scores:
        tops = [sorted((one["logprob"] for one in token["top_logprobs"]), reverse=True) for token in scores["content"]]
    else:
        tops = [sorted(top.values(), reverse=True) for top in scores["top_logprobs"]]
    return all(len(top) < 2 or top[0] - top[1] > MARGIN for top in tops)


@contextlib.asynccontextmanager
async def connected(host: str, port: int, *, receive_bytes: int = 0, abrupt: bool = False):
    """A connection; abrupt ends it with a reset, receive_bytes makes its buffer small."""
    own = socket.socket()
    own.setblocking(False)
    if receive_bytes:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        await asyncio.get_running_loop().sock_connect(own, (host, port))
        if abrupt:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader, writer = await asyncio.open_connection(sock=own, limit=1024 if receive_bytes else 2**16)
    except BaseException:
        own.close()
        raise
    try:
        yield reader, writer
    finally:
        writer.transport.abort() if abrupt else writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def post(path: str, body: dict[str, Any]) -> bytes:
    """A POST of JSON."""
    return post_bytes(path, json.dumps(body).encode())


def post_bytes(path: str, body: bytes | None) -> bytes:
    """A POST of whatever is given."""
    length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
    head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % path.encode()
    return head + length + b"\r\n" + (body or b"")


async def read_answer(reader: asyncio.StreamReader, *, pause_s: float = 0.0) -> tuple[int, str, bytes]:
    """Read one response; returns its status, content type and body. Pauses between pieces where told."""

    async def calmly(reading):
        return await asyncio.wait_for(reading, CALM)

    head = (await calmly(reader.readuntil(b"\r\n\r\n"))).decode("latin-1").lower()
    status = int(head.split()[1])
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    kind = headers.get("content-type", "")
    if headers.get("transfer-encoding") != "chunked":
        return status, kind, await calmly(reader.readexactly(int(headers.get("content-length", 0))))
    body = b""
    while size := int(await calmly(reader.readuntil(b"\r\n")), 16):
        body += (await calmly(reader.readexactly(size + 2)))[:-2]
        if pause_s:
            await asyncio.sleep(pause_s)
    await calmly(reader.readexactly(2))
    return status, kind, body


def answer_text(question: Question, kind: str, body: bytes) -> str | None:
    """The text of a complete answer; None where it has no end."""
    if question.path.startswith("/api/"):
        lines = [json.loads(line) for line in body.splitlines() if line]
        return "".join(line.get("response", "") for line in lines) if lines and lines[-1].get("done") else None
    if "event-stream" not in kind:
        return _piece(json.loads(body)["choices"][0])
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return None
    return "".join(_piece(choice) for event in events[:-1] for choice in json.loads(event)["choices"])


def _piece(choice: dict[str, Any]) -> str:
    told = choice.get("delta") or choice.get("message") or choice
    return told.get("content", told.get("text", "")) or ""
