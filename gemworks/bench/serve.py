"""How the server does: over the bare engine, next to llama-server, and with a thousand connections that wait.

    bare    eight streams, each a few requests one after the other: the same requests through HTTP and given to the
            engine in its own process, in turns. What the server costs in tokens a second. For what it costs to the
            first token seven of the streams write one long answer each while the eighth asks again and again, each
            time after a pause of some steps' length. Were all to ask at once, each would wait for the others' prompts,
            seconds that differ by a tenth and more from run to run; and without the pause the bare engine's client,
            which is in its process, would ask before the next step is planned, as nobody can who comes by chance.
    rival   1 to 16 clients, prompts of 128 tokens and answers of 64, in turns with llama-server. Each client keeps its
            connection and sends its next request when it has its answer.
    idle    resident memory of connections that stream and wait: every row of the engine is taken, so their requests are
            admitted, counted in the queue and unanswered until they are closed.

Prompts are random tokens, sent as ids, so both sides compute the same number; no prompt comes twice. The client shares
the machine with the servers, as it is.
"""

import asyncio
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.bench.child import Child
from gemworks.bench.engine_load import Timer, percentiles, random_prompt
from gemworks.bench.serve_client import Answered, Connection, get_json, get_text
from gemworks.bench.serve_systems import (
    Server,
    Serving,
    bare_command,
    start_llama_cpp_python,
    start_llama_server,
    start_ours,
)
from gemworks.bench.targets import Verdict
from gemworks.errors import BackendError, ConfigError

NAMES = ("bare", "rival", "idle")
CLIENTS = (1, 2, 4, 8, 16)
BARE_STREAMS = 8
ASKED = 24  # times that the eighth stream asks in a round
PAUSE_S = 0.2  # before each, at most
PROMPT, ANSWER = 128, 64

# What is wanted: tokens/s over the bare engine, seconds later to the first token, tokens/s over llama-server, at most
# its p95 to the first token, and bytes of 1,000 waiting connections.
OVER_BARE, LATER_S, OVER_RIVAL, P95_OVER_RIVAL, IDLE_BYTES = 0.95, 0.005, 2.0, 1.0, 50_000_000

# The allocator keeps what the first thousand connections needed for the second; a leak would double it.
LEFT_BEHIND = 1.25

Streams = list[list[tuple[list[int], int, float]]]  # client -> its requests: (prompt, tokens, seconds before it asks)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is measured. `rival`: llama-server's program, None for llama-cpp-python's server; `vocab`: ids there are."""

    serving: Serving
    vocab: int
    names: tuple[str, ...] = NAMES
    rounds: int = 3
    requests: int = 2
    clients: tuple[int, ...] = CLIENTS
    prompt: int = PROMPT
    answer: int = ANSWER
    rival: Path | None = None
    rival_model: str = ""
    idle: Serving | None = None
    connections: int = 1000
    log: Path

    def __post_init__(self):
        for name in self.names or ("",):
            if name not in NAMES:
                raise ConfigError(f'--what must be some of {", ".join(NAMES)}, got "{name}".')


class Watch:
    """What a run tells while it goes: lines, and steps of how many. Stand-in: says nothing."""

    def say(self, line: str) -> None:
        """Tell a line."""

    def step(self, text: str, total: int | None = None) -> None:
        """Begin the next of `total` steps."""


def steps(plan: Plan) -> int:
    """Return how many steps `run` tells: turns of each side, one unmeasured round included."""
    turns = {"bare": 4 * (plan.rounds + 1), "rival": 2 * (plan.rounds + 1) * len(plan.clients), "idle": 3}
    return sum(turns[name] for name in plan.names)


def make_streams(plan: Plan, count: int, seed: int) -> Streams:
    """Return what `count` clients ask. Answers differ by up to a quarter, so that streams do not go in step."""
    rng = np.random.default_rng(seed)
    spread = max(plan.answer // 4, 1) if count > 1 else 0
    return [
        [
            (
                list(random_prompt(plan.prompt, rng, plan.vocab)),
                plan.answer + int(rng.integers(-spread, spread + 1)),
                0.0,
            )
            for _ in range(plan.requests)
        ]
        for _ in range(count)
    ]


def run(plan: Plan, found: dict[str, Any], watch: Watch) -> None:
    """Measure what the plan names into `found`, name -> figures, as they come: an interrupted run keeps what it had."""
    with tempfile.TemporaryDirectory(prefix="gemworks-bench-") as folder:
        if {"bare", "rival"} & set(plan.names):
            watch.say(f"starting ours: {plan.serving.model}")
            with start_ours(plan.serving, Path(folder), plan.log) as ours:
                if "bare" in plan.names:
                    found["bare"] = {}
                    _bare(plan, ours, found["bare"], watch)
                if "rival" in plan.names:
                    found["rival"] = {}
                    _rival(plan, ours, found["rival"], watch)
        if "idle" in plan.names:
            found["idle"] = _idle(plan, Path(folder), watch)


def _bare(plan: Plan, ours: Server, found: dict[str, Any], watch: Watch) -> None:
    watch.say("starting the bare engine")
    with Child(bare_command(plan.serving), name="bare engine", log=plan.log, changes={}) as engine:
        engine.reply()

        def ask_engine(streams: Streams) -> dict[str, Any]:
            return engine.ask({"streams": streams})

        sides = {"ours": _asker(ours), "bare": ask_engine}
        rounds = found["rounds"] = []
        for values in _turns(plan, BARE_STREAMS, sides, watch, "bare"):
            rounds.append(values)
            found |= _over_bare(rounds)
        firsts = found["first_rounds"] = []
        for values in _turns(plan, BARE_STREAMS, sides, watch, "first token", make=make_asking):
            firsts.append({name: asked_again(plan, one) for name, one in values.items()})
            found["first"] = _later(firsts)


def _rival(plan: Plan, ours: Server, found: dict[str, Any], watch: Watch) -> None:
    theirs = replace(plan.serving, model=plan.rival_model)
    watch.say(f"starting {plan.rival or 'llama_cpp.server'}")
    rival = start_llama_server(plan.rival, theirs, plan.log) if plan.rival else start_llama_cpp_python(theirs, plan.log)
    with rival:
        found["system"] = rival.name
        sides = {"ours": _asker(ours), rival.name: _asker(rival)}
        rows = found["clients"] = {}
        for count in plan.clients:
            rounds: list[dict[str, Any]] = []
            for values in _turns(plan, count, sides, watch, f"{count} clients"):
                rounds.append(values)
                rows[str(count)] = {name: _figures([one[name] for one in rounds]) for name in sides}
        found["targets"] = _over_rival(rows, rival.name)


def make_asking(plan: Plan, count: int, seed: int) -> Streams:
    """Return what `count` clients ask of whom all but the last write all the time, and the last asks again and again.

    The long answers' prompts are half as long as the others: that tells them apart.
    """
    rng = np.random.default_rng(seed)
    half, longest = plan.prompt // 2, plan.serving.context - plan.prompt
    writing: Streams = [
        [(list(random_prompt(half, rng, plan.vocab)), min(10 * ASKED, longest), 0.0)] for _ in range(count - 1)
    ]
    pauses_s = rng.uniform(0, PAUSE_S, ASKED).tolist()
    return [*writing, [(list(random_prompt(plan.prompt, rng, plan.vocab)), 4, pause_s) for pause_s in pauses_s]]


def asked_again(plan: Plan, values: dict[str, Any]) -> list[float]:
    """Return the seconds to the first token of those that make_asking's last client asked."""
    return [seconds for length, seconds in values["first_s"] if length == plan.prompt]


def _turns(
    plan: Plan,
    count: int,
    sides: dict[str, Callable[[Streams], dict[str, Any]]],
    watch: Watch,
    what: str,
    make: Callable[[Plan, int, int], Streams] = make_streams,
):
    """Yield what each side measured in each round; the order turns, and round 0 is not yielded."""
    for round in range(plan.rounds + 1):
        streams = make(plan, count, 1000 * count + round)
        values = {}
        for name in list(sides) if round % 2 else reversed(list(sides)):
            watch.step(f"{what}: {name}, round {round} of {plan.rounds}")
            values[name] = sides[name](streams)
        if round:
            yield values


def _asker(server: Server) -> Callable[[Streams], dict[str, Any]]:
    model = asyncio.run(get_json(server.host, server.port, "/v1/models"))["data"][0]["id"]
    return lambda streams: asyncio.run(_all_clients(server, model, streams))


# Fields that only llama.cpp knows. Random weights end an answer rarely and by chance, so counts are those the servers
# tell, not those asked for.
_EXTRA = {"llama-server": {"ignore_eos": True, "cache_prompt": False}}


def body(server: Server, model: str, prompt: Sequence[int], count: int) -> dict[str, Any]:
    """Return a request for `count` tokens, greedy."""
    asked = {"model": model, "prompt": list(prompt), "max_tokens": count, "temperature": 0}
    return asked | _EXTRA.get(server.name, {})


async def _all_clients(server: Server, model: str, streams: Streams) -> dict[str, Any]:
    timer = Timer()

    async def client(stream: list[tuple[list[int], int, float]]) -> list[Answered]:
        answers = []
        async with Connection(server.host, server.port, timer) as connection:
            for prompt, count, pause_s in stream:
                await asyncio.sleep(pause_s)
                answers.append(await connection.ask(body(server, model, prompt, count)))
        return answers

    began = timer.now()
    answers = [one for some in await asyncio.gather(*map(client, streams)) for one in some]
    for one in answers:
        if one.status != 200 or one.error or not one.tokens:
            raise BackendError(f"{server.name} answered {one.status}: {one.error or 'no tokens'}")
    lengths = [len(prompt) for stream in streams for prompt, *_ in stream]
    # Random weights may repeat a token that is a part of a character: such an answer has tokens, but no first text.
    first_s = [(length, one.ttft_s) for length, one in zip(lengths, answers, strict=True) if one.ttft_s is not None]
    if len(first_s) < len(answers) / 2:
        raise BackendError(f"{server.name}: {len(answers) - len(first_s)} of {len(answers)} answers have no text.")
    return {
        "seconds": max(one.last_s for one in answers) - began,
        "first_s": first_s,
        "answer_tokens": sum(one.tokens for one in answers),
        "prompt_tokens": sum(lengths),
    }


def _figures(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median rates over rounds; times to the first token of all requests together."""
    return {
        "tokens_per_second": statistics.median(
            (one["prompt_tokens"] + one["answer_tokens"]) / one["seconds"] for one in rounds
        ),
        "answer_tokens_per_second": statistics.median(one["answer_tokens"] / one["seconds"] for one in rounds),
        "ttft_s": percentiles([value for one in rounds for _, value in one["first_s"]]),
    }


def _over_bare(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def rate(one: dict[str, Any]) -> float:
        return (one["prompt_tokens"] + one["answer_tokens"]) / one["seconds"]

    ratio = statistics.median(rate(one["ours"]) / rate(one["bare"]) for one in rounds)
    return {
        "ours": _figures([one["ours"] for one in rounds]),
        "bare": _figures([one["bare"] for one in rounds]),
        "throughput_ratio": ratio,
        "targets": [
            _target(f"tokens/s over the bare engine, {BARE_STREAMS} streams", OVER_BARE, ratio, upper=False),
        ],
    }


def _later(rounds: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    """Times to the first token while seven others write, of all rounds together, and how much later ours is."""
    medians = {name: statistics.median(value for one in rounds for value in one[name]) for name in ("ours", "bare")}
    later_s = medians["ours"] - medians["bare"]
    of_rounds = [statistics.median(one["ours"]) - statistics.median(one["bare"]) for one in rounds]
    text = "p50 to the first token, seconds later than the bare engine"
    return {
        "p50_s": medians,
        "later_s": later_s,
        "later_of_rounds_s": of_rounds,
        "targets": [_target(text, LATER_S, later_s, upper=True)],
    }


def _over_rival(rows: dict[str, Any], rival: str) -> list[dict[str, Any]]:
    found = []
    for count, row in rows.items():
        faster = row["ours"]["tokens_per_second"] / row[rival]["tokens_per_second"]
        found.append(_target(f"{count} clients, tokens/s over {rival}", OVER_RIVAL, faster, upper=False))
        later = row["ours"]["ttft_s"]["p95"] / row[rival]["ttft_s"]["p95"]
        found.append(
            _target(f"{count} clients, p95 to the first token over {rival}", P95_OVER_RIVAL, later, upper=True)
        )
    return found


def _idle(plan: Plan, folder: Path, watch: Watch) -> dict[str, Any]:
    serving = plan.idle or plan.serving
    watch.step("idle: starting")
    with start_ours(replace(serving, queue=2 * plan.connections + 100), folder, plan.log) as server:
        return asyncio.run(_waiting(plan, serving, server, watch))


async def _waiting(plan: Plan, serving: Serving, server: Server, watch: Watch) -> dict[str, Any]:
    """Open the connections twice: the second time says what is left of the first, and what allocators keep."""
    host, port = server.host, server.port
    model = (await get_json(host, port, "/v1/models"))["data"][0]["id"]
    timer, prompt = Timer(), [2, *range(300, 331)]
    async with Connection(host, port, timer) as blocker:
        longest = serving.context - len(prompt)
        busy = asyncio.create_task(blocker.ask(body(server, model, prompt, longest)))
        await _settled(server, running=serving.sequences, waiting=0)
        before, during, after, queued = [server.resident_bytes()], [], [], []
        for round in range(2):
            watch.step(f"idle: {plan.connections} connections, round {round + 1} of 2")
            opened = [Connection(host, port, timer) for _ in range(plan.connections)]
            for one in opened:
                await one.__aenter__()
                await one.send(body(server, model, prompt, 16) | {"stream": True})
            queued.append(await _settled(server, running=serving.sequences, waiting=plan.connections))
            during.append(server.resident_bytes())
            for one in opened:
                await one.__aexit__()
            await _settled(server, running=serving.sequences, waiting=0)
            after.append(server.resident_bytes())
        is_still_busy = not busy.done()
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
    cost = during[0] - before[0]
    left = (after[1] - before[0]) / max(cost, 1)
    return {
        "connections": plan.connections,
        "resident_bytes": {"before": before[0], "during": during, "after": after},
        "queued": queued,
        "rows_were_taken": is_still_busy,
        "bytes": cost,
        "bytes_each": cost / plan.connections,
        "targets": [
            _target(f"bytes of {plan.connections:,} waiting connections", IDLE_BYTES, cost, upper=True),
            _target("and what they leave behind, over that", LEFT_BEHIND, left, upper=True),
        ],
    }


async def _settled(server: Server, *, running: int, waiting: int) -> dict[str, float]:
    """Wait until the server itself says how many run and wait. Raises BackendError where it does not in a minute."""
    said: dict[str, float] = {}
    for _ in range(300):
        said = gauges(await get_text(server.host, server.port, "/metrics"))
        if said.get("running") == running and said.get("waiting") == waiting:
            return said
        await asyncio.sleep(0.2)
    raise BackendError(f"{server.name}: wanted {running} running and {waiting} waiting, its metrics say {said}.")


def gauges(metrics: str) -> dict[str, float]:
    """Return how many requests run and wait in the engine, of a page of metrics."""
    found = {}
    for name, metric in {"running": "gemworks_engine_running", "waiting": "gemworks_engine_waiting"}.items():
        values = re.findall(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", metrics, re.M)
        if values:
            found[name] = sum(map(float, values))
    return found


def _target(text: str, bound: float, value: float, *, upper: bool) -> dict[str, Any]:
    verdict = Verdict(text, bound, value, upper)
    return asdict(verdict) | {"is_met": verdict.is_met}
