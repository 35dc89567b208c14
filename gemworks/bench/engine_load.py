"""Load on an engine: requests that arrive at random times, and when each of their tokens came out.

Arrivals are a Poisson process: gaps are exponential and independent of how the engine is doing, as users are, so an
engine that falls behind is asked no less (a closed loop, where a user waits for an answer before the next question, is
`closed_loop`). Times to first token count from when a request should have arrived, not from when it was taken.

    --shared-prefix N   every prompt begins with the same N tokens
    --mix long,short    a prompt is of `prompt` tokens (short) or LONG times that, each as likely
    --keys K            requests belong to K keys in turn

One event loop reads every answer, as a server does: its work takes the interpreter's lock from the engine's thread, and
that is part of what is measured.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gemworks.engine.types import Request, SamplingParams
from gemworks.errors import ConfigError, GemworksError

LONG = 8  # times as many tokens as a short prompt
MIXES = ("short", "long")

_BOS = 2
_LOWEST = 300  # ids below are control tokens and bytes in the official vocabulary


class Timer:
    """Wall time; tests put another in its place."""

    def now(self) -> float:
        """Return seconds from some moment."""
        return time.perf_counter()

    async def sleep(self, seconds: float) -> None:
        """Let others run for `seconds`."""
        await asyncio.sleep(seconds)


class AnEngine(Protocol):
    """What is measured: engine.Engine, or a stand-in."""

    def submit(self, request: Request) -> Any:
        """Begin a request; the handle is read with `async for`."""
        ...

    def stats(self) -> Any:
        """Return counts since it was made, as EngineStats."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is offered: `rate` requests a second for `seconds`. Tokens of prompt and answer; seeded."""

    rate: float = 1.0
    seconds: float = 30.0
    prompt: int = 128
    answer: int = 64
    shared_prefix: int = 0
    mix: tuple[str, ...] = ("short",)
    keys: int = 1
    seed: int = 0

    def __post_init__(self):
        for name in ("rate", "seconds", "prompt", "answer", "keys"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name} must be above 0, got {getattr(self, name)}.")
        if self.shared_prefix < 0:
            raise ConfigError(f"--shared-prefix must be 0 or more tokens, got {self.shared_prefix}.")
        for one in self.mix or ("",):
            if one not in MIXES:
                raise ConfigError(f'--mix must be some of {",".join(MIXES)}, got "{one}".')

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and its answer."""
        prompt = self.prompt * (LONG if "long" in self.mix else 1)
        return self.shared_prefix + prompt + self.answer


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and the second at which it arrives; `kind` is of the mix."""

    at_s: float
    kind: str
    request: Request


@dataclass(slots=True)
class Record:
    """What became of one request. `times` are when its tokens came, by the timer that `offered_s` is of."""

    key: str
    kind: str
    offered_s: float
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    computed_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token; None where there was none."""
        return self.times[0] - self.offered_s if self.times else None

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def decode_per_second(self) -> float:
        """Tokens a second after the first."""
        seconds = self.times[-1] - self.times[0] if self.times else 0.0
        return (len(self.times) - 1) / seconds if seconds > 0 else 0.0


def random_ids(count: int, rng: np.random.Generator, vocab: int) -> list[int]:
    """Return ordinary tokens, drawn alike."""
    return rng.integers(min(_LOWEST, vocab - 1), vocab, count).tolist()


def random_prompt(count: int, rng: np.random.Generator, vocab: int) -> tuple[int, ...]:
    """Return <bos> and random tokens, `count` in all."""
    return (min(_BOS, vocab - 1), *random_ids(count - 1, rng, vocab))


def greedy(prompt: Sequence[int], answer: int, **more: Any) -> Request:
    """Return a request for exactly `answer` tokens: random weights would stop at random."""
    return Request(prompt=tuple(prompt), params=SamplingParams(temperature=0.0, max_tokens=answer), **more)


def arrivals(load: Load, vocab: int) -> list[Arrival]:
    """Return what arrives in `load.seconds`, in order; the same for the same load."""
    rng = np.random.default_rng(load.seed)
    shared = random_prompt(load.shared_prefix, rng, vocab) if load.shared_prefix else ()
    found, at_s = [], 0.0
    while (at_s := at_s + rng.exponential(1 / load.rate)) < load.seconds:
        kind = load.mix[rng.integers(len(load.mix))]
        own = random_prompt(load.prompt * (LONG if kind == "long" else 1), rng, vocab)
        request = greedy(shared + own, load.answer, key=f"key {len(found) % load.keys}")
        found.append(Arrival(at_s, kind, request))
    return found


async def ask(
    engine: AnEngine, request: Request, timer: Timer, *, offered_s: float | None = None, kind: str = ""
) -> Record:
    """Send a request and read its answer. A refusal is noted in the record, not raised."""
    offered_s = timer.now() if offered_s is None else offered_s
    record = Record(request.key, kind, offered_s, len(request.prompt))
    try:
        handle = engine.submit(request)
        async for event in handle:
            if event.token_id is not None:
                record.tokens.append(event.token_id)
                record.times.append(timer.now())
        timings = handle.timings(0)
        record.computed_tokens, record.cached_tokens = timings.prefill_tokens, timings.cached_tokens
    except GemworksError as error:
        record.error = f"{type(error).__name__}: {error}"
    return record


async def offer(engine: AnEngine, coming: Sequence[Arrival], timer: Timer) -> list[Record]:
    """Send everything when its time has come and wait for all answers."""
    begun = timer.now()

    async def one(arrival: Arrival) -> Record:
        await timer.sleep(max(0.0, begun + arrival.at_s - timer.now()))
        return await ask(engine, arrival.request, timer, offered_s=begun + arrival.at_s, kind=arrival.kind)

    return list(await asyncio.gather(*map(one, coming)))


async def closed_loop(
    engine: AnEngine,
    streams: Sequence[Sequence[Request]],
    timer: Timer,
    pauses_s: Sequence[Sequence[float]] | None = None,
) -> list[Record]:
    """Let each stream send its requests one after the other, all streams at once.

    pauses_s: how long a stream waits before each of its requests; None is not at all.
    """

    async def one(stream: Sequence[Request], pauses: Sequence[float]) -> list[Record]:
        records = []
        for request, pause_s in zip(stream, pauses, strict=True):
            await timer.sleep(pause_s)
            records.append(await ask(engine, request, timer))
        return records

    pauses_s = [[0.0] * len(stream) for stream in streams] if pauses_s is None else pauses_s
    return [record for records in await asyncio.gather(*map(one, streams, pauses_s)) for record in records]


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95 and p99, None of nothing."""
    if not values:
        return None
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}


def counted(before: Any, after: Any) -> dict[str, float]:
    """Return what the engine did between two EngineStats."""
    names = ("steps", "rows_decoded", "tokens_drawn", "tokens_prefilled", "tokens_cached", "preemptions")
    names += ("drafts_proposed", "drafts_accepted", "step_s", "host_s", "wait_s")
    return {name: getattr(after, name) - getattr(before, name) for name in names}


def summary(records: Sequence[Record], done: Mapping[str, float], sequences: int) -> dict[str, Any]:
    """Return the figures of a load. `done`: what the engine counted meanwhile; `sequences`: rows it can have at most.

    Rates are over the time from the first arrival to the last token. occupancy: rows of a step over `sequences`, on
    average. host_share: what the engine's thread did besides waiting, over the time that steps took.
    """
    good = [record for record in records if record.times]
    seconds = max(r.times[-1] for r in good) - min(r.offered_s for r in records) if good else 0.0
    drawn, prompts = sum(len(r.times) for r in good), sum(r.prompt_tokens for r in good)
    by_key = {key: [r for r in good if r.key == key] for key in dict.fromkeys(r.key for r in good)}
    by_kind = {kind: [r for r in good if r.kind == kind] for kind in dict.fromkeys(r.kind for r in good)}
    return {
        "requests": len(records),
        "refused": sum(r.error is not None for r in records),
        "errors": sorted({r.error for r in records if r.error}),
        "seconds": seconds,
        "tokens_per_second": drawn / seconds if seconds else 0.0,
        "prompt_tokens_per_second": prompts / seconds if seconds else 0.0,
        **_latencies(good),
        "by_kind": {kind: _latencies(some) for kind, some in by_kind.items()} if len(by_kind) > 1 else {},
        "by_key": {key: _latencies(some) for key, some in by_key.items()} if len(by_key) > 1 else {},
        "occupancy": done["rows_decoded"] / done["steps"] / sequences if done["steps"] else 0.0,
        "cached_share": sum(r.cached_tokens for r in good) / prompts if prompts else 0.0,
        "preemptions": done["preemptions"],
        "host_share": done["host_s"] / done["step_s"] if done["step_s"] else None,
    }


def _latencies(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "ttft_s": percentiles([r.ttft_s for r in records if r.ttft_s is not None]),
        "inter_token_s": percentiles([gap for r in records for gap in r.gaps_s]),
    }
