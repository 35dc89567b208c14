"""Questions to an engine, each with what it is to reach: prefix, chat, fairness, speculation, host, and any load.

A scenario opens the engine it needs from a `Source`, asks it, and returns its figures; those with a target have
"targets" (targets.Verdict as dicts). Requests are greedy over random tokens, and every answer has exactly the tokens
asked for. Times are medians over rounds where a round is short; the first round of each is not counted.
"""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from gemworks.bench.engine_load import (
    AnEngine,
    Load,
    Record,
    Timer,
    arrivals,
    ask,
    closed_loop,
    counted,
    greedy,
    offer,
    percentiles,
    random_ids,
    random_prompt,
    summary,
)
from gemworks.bench.targets import Verdict
from gemworks.engine.types import Request, SamplingParams
from gemworks.errors import BackendError

SHARED = 1000  # tokens that the second request of `prefix` shares with the first
OWN = 24  # and that each has for itself
CHAT_TURNS, CHAT_QUESTION, CHAT_ANSWER = 20, 60, 40
PAGE = 16  # tokens a turn may compute again: the page in which the last one ended

CROWD, CROWD_PROMPT, CROWD_ANSWER = 50, 4000, 16
OTHER_PROMPT, OTHER_ANSWER, OTHER_REQUESTS = 64, 32, 12

COPY_PROMPT, SPECULATED = 256, 192


class Source(Protocol):
    """Where engines come from: one model, and an engine with room for what a scenario wants."""

    vocab: int

    def open(
        self, *, context: int, sequences: int, cache_tokens: int = 0, speculation: bool = False, kv: str | None = None
    ) -> AnEngine:
        """Return an engine, warmed up: nothing compiles inside a request."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What every scenario is told. `sequences`: rows at most; `repeats`: counted rounds of what is repeated."""

    load: Load
    sequences: int = 16
    repeats: int = 3
    kv: str | None = None


def load(source: Source, setting: Setting, timer: Timer) -> dict[str, Any]:
    """Offer the load; return its summary, and every time for the picture."""
    given = setting.load
    coming = arrivals(given, source.vocab)
    engine = source.open(
        context=given.longest, sequences=setting.sequences, cache_tokens=4 * given.shared_prefix, kv=setting.kv
    )
    before = engine.stats()
    records = asyncio.run(offer(engine, coming, timer))
    figures = summary(records, counted(before, engine.stats()), setting.sequences)
    kept = {"ttft_s": [r.ttft_s for r in records if r.times], "gaps_s": [gap for r in records for gap in r.gaps_s]}
    return figures | {"samples": kept}


def prefix(source: Source, setting: Setting, timer: Timer) -> dict[str, Any]:
    """Ask twice with 1,000 tokens in common: the second answer's first token over the first's."""
    engine = source.open(context=2048, sequences=setting.sequences, cache_tokens=2048, kv=setting.kv)
    rng = np.random.default_rng(setting.load.seed)
    firsts, seconds = [], []
    for _ in range(setting.repeats + 1):
        shared = random_prompt(SHARED, rng, source.vocab)
        pair = [greedy((*shared, *random_ids(OWN, rng, source.vocab)), 4) for _ in range(2)]
        for request, into in zip(pair, (firsts, seconds), strict=True):
            into.append(_must(asyncio.run(ask(engine, request, timer))))
    first_s, second_s = (statistics.median(r.ttft_s or 0.0 for r in some[1:]) for some in (firsts, seconds))
    cached = [record.cached_tokens for record in seconds[1:]]
    ratio = second_s / first_s if first_s else None
    return {
        "first_ttft_s": first_s,
        "second_ttft_s": second_s,
        "cached_tokens": cached,
        "targets": [_target("time to first token, shared 1,000 tokens, second over first", 0.12, ratio, upper=True)],
    }


def chat(source: Source, setting: Setting, timer: Timer) -> dict[str, Any]:
    """Hold a conversation of 20 turns, longer than the window: tokens computed that were computed before.

    A turn must compute its question and the last token of the answer before it, which was drawn and never stored.
    """
    turn = CHAT_QUESTION + CHAT_ANSWER
    engine = source.open(context=2048, sequences=setting.sequences, cache_tokens=2048, kv=setting.kv)
    assert CHAT_TURNS * turn <= 2048
    rng = np.random.default_rng(setting.load.seed)
    history: list[int] = []
    computed, again, ttft = [], [], []
    for _ in range(CHAT_TURNS):
        question = random_ids(CHAT_QUESTION, rng, source.vocab)
        record = _must(asyncio.run(ask(engine, greedy([*history, *question], CHAT_ANSWER), timer)))
        new = CHAT_QUESTION + (1 if history else 0)
        computed.append(record.computed_tokens)
        again.append(record.computed_tokens - new)
        ttft.append(record.ttft_s)
        history += [*question, *record.tokens]
    return {
        "tokens": len(history),
        "computed": computed,
        "ttft_s": ttft,
        "targets": [_target("tokens computed again a turn, at most", PAGE, float(max(again)), upper=True)],
    }


def fairness(source: Source, setting: Setting, timer: Timer) -> dict[str, Any]:
    """One key asks 50 prompts of 4,000 tokens; another key's latencies then, over those on an idle engine."""
    engine = source.open(context=CROWD_PROMPT + CROWD_ANSWER + PAGE, sequences=setting.sequences, kv=setting.kv)
    rng = np.random.default_rng(setting.load.seed)

    def others(count: int) -> list[Request]:
        prompts = (random_prompt(OTHER_PROMPT, rng, source.vocab) for _ in range(count))
        return [greedy(prompt, OTHER_ANSWER, key="other", use_cache=False) for prompt in prompts]

    async def measure() -> tuple[list[Record], list[Record]]:
        await closed_loop(engine, [others(1)], timer)  # not counted
        idle = await closed_loop(engine, [others(OTHER_REQUESTS)], timer)
        prompts = (random_prompt(CROWD_PROMPT, rng, source.vocab) for _ in range(CROWD))
        crowd = [greedy(prompt, CROWD_ANSWER, key="crowd", use_cache=False) for prompt in prompts]
        asking = [asyncio.create_task(ask(engine, request, timer)) for request in crowd]
        await timer.sleep(1.0)
        busy = await closed_loop(engine, [others(OTHER_REQUESTS)], timer)
        for task in asking:
            task.cancel()  # leaving its loop cancels the request
        await asyncio.gather(*asking, return_exceptions=True)
        return [_must(r) for r in idle], [_must(r) for r in busy]

    idle, busy = asyncio.run(measure())
    figures = {"idle": _latencies(idle), "busy": _latencies(busy)}
    ratios = {name: _ratio(figures["busy"][name], figures["idle"][name], "p95") for name in ("inter_token_s", "ttft_s")}
    return figures | {
        "targets": [
            _target(
                "p95 between tokens beside 50 prompts of 4,000, over idle", 2.5, ratios["inter_token_s"], upper=True
            ),
            _target("p95 to the first token beside 50 prompts of 4,000, over idle", 3.0, ratios["ttft_s"], upper=True),
        ]
    }


def speculation(source: Source, setting: Setting, timer: Timer) -> dict[str, Any]:
    """Decode with prompt lookup over decode without, on text that repeats itself and on text that does not.

    copy        greedy after a prompt that is one passage again and again: weights of random numbers fall into a cycle,
                whose tokens were all seen before
    misleading  the same prompt, one of the two likeliest tokens at random: it keeps near the cycle, so lookups find
                matches, and half of what they guess is wrong
    random      one of 64 tokens at random: lookups find nothing
    """
    context = COPY_PROMPT + SPECULATED + PAGE
    engines = {on: source.open(context=context, sequences=1, speculation=on, kv=setting.kv) for on in (False, True)}
    rates: dict[str, dict[bool, list[float]]] = {}
    same: dict[str, bool] = {}
    drafts: dict[str, list[int]] = {}
    for round in range(setting.repeats + 1):
        rng = np.random.default_rng(setting.load.seed + round)
        for what, request in _texts(rng, source.vocab, seed=round).items():
            records, before = {}, engines[True].stats()
            for on in (False, True) if round % 2 else (True, False):
                records[on] = _must(asyncio.run(ask(engines[on], request, timer)))
                if round:
                    rates.setdefault(what, {}).setdefault(on, []).append(records[on].decode_per_second)
            done = counted(before, engines[True].stats())
            told = drafts.setdefault(what, [0, 0])
            told[:] = told[0] + int(done["drafts_accepted"]), told[1] + int(done["drafts_proposed"])
            same[what] = same.get(what, True) and records[True].tokens == records[False].tokens
    medians = {what: {on: statistics.median(values) for on, values in by.items()} for what, by in rates.items()}
    ratios = {what: by[True] / by[False] if by[False] else None for what, by in medians.items()}
    fails = [ratio for what, ratio in ratios.items() if what != "copy" and ratio is not None]
    return {
        "decode_per_second": {what: {"off": by[False], "on": by[True]} for what, by in medians.items()},
        "ratios": ratios,
        "same_text": same,
        "drafts": {what: {"accepted": told[0], "proposed": told[1]} for what, told in drafts.items()},
        "targets": [
            _target("decode with prompt lookup over without, text that repeats itself", 1.6, ratios["copy"]),
            _target("the same, text where it fails", 0.97, min(fails) if fails else None),
        ],
    }


def host(source: Source, setting: Setting, timer: Timer) -> dict[str, Any]:
    """Keep every row busy; what the engine's thread did besides waiting, over the time its steps took."""
    given, rows = setting.load, setting.sequences
    engine = source.open(context=given.prompt + given.answer + PAGE, sequences=rows, kv=setting.kv)
    rng = np.random.default_rng(given.seed)

    def streams(each: int) -> list[list[Request]]:
        return [
            [greedy(random_prompt(given.prompt, rng, source.vocab), given.answer) for _ in range(each)]
            for _ in range(rows)
        ]

    asyncio.run(closed_loop(engine, streams(1), timer))
    before, begun = engine.stats(), timer.now()
    records = [_must(r) for r in asyncio.run(closed_loop(engine, streams(setting.repeats), timer))]
    done, seconds = counted(before, engine.stats()), timer.now() - begun
    figures = summary(records, done, rows)
    return {
        "seconds": seconds,
        "step_s": done["step_s"],
        "host_s": done["host_s"],
        "steps": done["steps"],
        "step_ms": 1000 * done["step_s"] / done["steps"] if done["steps"] else None,
        "host_ms": 1000 * done["host_s"] / done["steps"] if done["steps"] else None,
        # What no step covers: the device waited for the host.
        "idle_share": max(0.0, 1 - done["step_s"] / seconds) if seconds else None,
        "tokens_per_second": figures["tokens_per_second"],
        "occupancy": figures["occupancy"],
        "targets": [_target("scheduling and Python over step time", 0.05, figures["host_share"], upper=True)],
    }


SCENARIOS = {
    "load": load,
    "prefix": prefix,
    "chat": chat,
    "fairness": fairness,
    "speculation": speculation,
    "host": host,
}


def _texts(rng: np.random.Generator, vocab: int, seed: int) -> dict[str, Request]:
    again = tuple(random_ids(COPY_PROMPT // 8, rng, vocab) * 8)
    # At this temperature the likeliest tokens of random weights are about as likely as each other.
    two = SamplingParams(temperature=4.0, top_k=2, top_p=1.0, max_tokens=SPECULATED, seed=seed)
    return {
        "copy": greedy(again, SPECULATED, use_cache=False),
        "misleading": Request(prompt=again, params=two, use_cache=False),
        "random": Request(
            prompt=random_prompt(COPY_PROMPT, rng, vocab), params=replace(two, top_k=64), use_cache=False
        ),
    }


def _must(record: Record) -> Record:
    if record.error is not None:
        raise BackendError(f"the engine refused what it was to be measured on: {record.error}")
    return record


def _latencies(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "ttft_s": percentiles([r.ttft_s for r in records if r.ttft_s is not None]),
        "inter_token_s": percentiles([gap for r in records for gap in r.gaps_s]),
    }


def _ratio(over: dict[str, float] | None, under: dict[str, float] | None, name: str) -> float | None:
    return over[name] / under[name] if over and under and under[name] else None


def _target(text: str, bound: float, value: float | None, *, upper: bool = False) -> dict[str, Any]:
    verdict = Verdict(text, bound, value, upper)
    return asdict(verdict) | {"is_met": verdict.is_met}
