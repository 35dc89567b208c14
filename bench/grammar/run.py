"""What does holding answers to a schema cost? Decode with eight schemas in one batch, and a long one's first token.

    python bench/grammar/run.py [--dir DIR] [--models 1b,270m] [--quant int4-b32] [--tokens 64] [--rounds 5]
        [--what decode,first]

DIR has the models of bench/cpu (DIR/1b, DIR/270m: random weights with Gemma 3's tokenizer).

    decode   eight texts at once, each with a schema of its own, against the same texts without, in turns: the share of
             the time of a token while all eight decode, the median of the rounds
    first    a schema of 200 lines that was never seen, and one that was: compiling and the first mask by themselves,
             and the first token of a request with it less that of one without

The last line is one JSON object.
"""

import argparse
import asyncio
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

from gemworks import LLM, env, machine
from gemworks.bench.engine_load import Timer, ask
from gemworks.bench.engine_ours import rates
from gemworks.text import grammar

# Shares of decode time, and milliseconds to the first token, that are to be reached.
TARGETS = {"1b": 0.05, "270m": 0.15}
FIRST_MS = 20.0

PROMPTS = [f"Here is what is known about item {n} of the list, as one JSON value and nothing else: " for n in range(8)]


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    """A list that is never complete while it is measured."""
    return {"type": "array", "items": item, "minItems": 200}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TEXT, WHOLE, TRUTH = {"type": "string", "maxLength": 40}, {"type": "integer"}, {"type": "boolean"}
SCHEMAS = [
    _list_of(_object(name=TEXT, country=TEXT, people=WHOLE)),
    _list_of(_object(kind={"enum": ["bird", "fish", "mammal", "insect"]}, legs={"enum": [0, 2, 4, 6]}, tame=TRUTH)),
    _list_of({"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 4, "maxItems": 4}),
    _list_of(_object(id={"type": "string", "format": "uuid"}, at={"type": "string", "format": "date-time"})),
    _list_of({"anyOf": [_object(move=TEXT), _object(say=TEXT, loud=TRUTH), _object(wait_s=WHOLE)]}),
    _list_of({"type": "object", "patternProperties": {"^[a-z]{2,8}$": WHOLE}, "additionalProperties": False}),
    {
        "$defs": {"node": _object(label=TEXT, children=_list_of({"$ref": "#/$defs/node"}))},
        "$ref": "#/$defs/node",
    },
    _list_of(_object(title={"type": "string"}, tags={"type": "array", "items": TEXT}, price={"type": "number"})),
]


def long_schema(seed: object) -> dict[str, Any]:
    """A schema of 200 lines as `json.dumps(indent=2)` writes it; others for other seeds."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "description": "free text"},
        {"type": "integer", "minimum": 0, "maximum": 1000},
        {"enum": ["low", "middle", "high"]},
        {"type": "string", "format": "date"},
        {"type": "array", "items": {"type": "number"}, "maxItems": 5},
        {"type": ["string", "null"], "maxLength": 20},
    ]
    properties: dict[str, Any] = {}
    made: dict[str, Any] = {}
    while len(json.dumps(made, indent=2).splitlines()) < 200:
        properties[f"field_{seed}_{len(properties)}"] = kinds[len(properties) % len(kinds)]
        made = _object(**properties)
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=env.cache() / "bench")
    parser.add_argument("--models", default="1b,270m")
    parser.add_argument("--quant", default="int4-b32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--what", default="decode,first")
    told = parser.parse_args()
    print(f"{machine.processor().name}, {machine.usable_cores()} cores; {told.quant}")
    figures: dict[str, Any] = {}
    for name in told.models.split(","):
        llm = LLM(told.dir / name, quant=told.quant, context=1024, max_sequences=len(SCHEMAS))
        llm.warm_up()
        figures[name] = {}
        if "decode" in told.what:
            figures[name] |= decode(llm, name, told.tokens, told.rounds)
        if "first" in told.what:
            figures[name] |= first(llm, told.rounds)
        llm.close()
    print(json.dumps(figures))


def decode(llm: LLM, name: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Measure a batch with and without schemas, in turns."""
    for is_masked in (True, False):  # reads the vocabulary and compiles the schemas
        run(llm, tokens, is_masked)
    rows = [(run(llm, tokens, True), run(llm, tokens, False)) for _ in range(rounds)]
    masked_ms, free_ms = (statistics.median(1e3 / row[i] for row in rows) for i in (0, 1))
    shares = sorted(free / masked - 1 for masked, free in rows)
    share = statistics.median(shares)
    target = TARGETS.get(name)
    wanted = "" if target is None else f", to be at most {target:.0%}"
    print(
        f"{name}: {masked_ms * 8:.1f} ms a step of 8 with schemas, {free_ms * 8:.1f} without: {share:+.1%} "
        f"({shares[0]:+.1%} to {shares[-1]:+.1%} in {rounds} rounds){wanted}"
    )
    return {"masked_ms": masked_ms * 8, "free_ms": free_ms * 8, "share": share, "shares": shares}


def run(llm: LLM, tokens: int, is_masked: bool) -> float:
    """Return tokens a second of all texts together, while all of them decode."""
    forms = [{"schema": schema} if is_masked else {} for schema in SCHEMAS]
    sampling = {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "max_tokens": tokens, "use_cache": False}
    requests = [
        llm.prepare(prompt, seed=i, **sampling, **form).request
        for i, (prompt, form) in enumerate(zip(PROMPTS, forms, strict=True))
    ]
    # A model of random numbers ends now and then: the answers without a form must be as long.
    requests = [
        dataclasses.replace(request, params=dataclasses.replace(request.params, stop_ids=())) for request in requests
    ]
    timer = Timer()

    async def all_at_once() -> list[Any]:
        return list(await asyncio.gather(*(ask(llm._engine, request, timer) for request in requests)))

    begun = timer.now()
    records = asyncio.run(all_at_once())
    for record in records:
        if record.error is not None or len(record.times) != tokens:
            raise SystemExit(f"an answer ended after {len(record.times)} of {tokens} tokens: {record.error}")
    rate = rates(records, begun, tokens)["decode_per_second"]
    assert rate is not None, "the texts never all decoded at once; ask for more tokens"
    return rate


def first(llm: LLM, rounds: int) -> dict[str, Any]:
    """Measure a long schema: compiled and masked by itself, and what it adds before a request's first token."""
    engine = llm._grammars
    cold, kept, added_cold, added_kept = [], [], [], []
    for n in range(3 * rounds):
        schema = long_schema(f"{n}_{time.monotonic_ns()}")
        cold.append(_timed(lambda schema=schema: engine.constrain(grammar.json_schema(schema))([])))
        kept.append(_timed(lambda schema=schema: engine.constrain(grammar.json_schema(schema))([])))
    for n in range(3 * rounds):
        schema = long_schema(f"r{n}_{time.monotonic_ns()}")
        free = _first_token_ms(llm, None)
        added_cold.append(_first_token_ms(llm, schema) - free)
        added_kept.append(_first_token_ms(llm, schema) - _first_token_ms(llm, None))
    told = {"cold": cold, "kept": kept, "added_cold": added_cold, "added_kept": added_kept}
    medians = {f"first_{name}_ms": statistics.median(values) for name, values in told.items()}
    lines = len(json.dumps(long_schema(0), indent=2).splitlines())
    print(
        f"a schema of {lines} lines: compiled and masked in {medians['first_cold_ms']:.1f} ms, kept in "
        f"{medians['first_kept_ms']:.2f}; the first token is {medians['first_added_cold_ms']:.1f} ms later, "
        f"{medians['first_added_kept_ms']:.1f} where it came before; to be at most {FIRST_MS:.0f}"
    )
    return medians


def _timed(work) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


def _first_token_ms(llm: LLM, schema: dict[str, Any] | None) -> float:
    """Milliseconds from the call to its first token."""
    begun = time.perf_counter()
    told = {} if schema is None else {"schema": schema}
    stream = llm.stream(PROMPTS[0], max_tokens=2, use_cache=False, temperature=1.0, top_k=64, **told)
    next(stream)
    took = (time.perf_counter() - begun) * 1e3
    for _ in stream:
        pass
    return took


if __name__ == "__main__":
    main()
