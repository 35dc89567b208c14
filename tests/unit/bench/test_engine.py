"""The engine's benchmark on an engine whose time is told to it: what it counts, what it refuses, what it prints."""

import asyncio
import contextlib
import itertools
import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from gemworks.bench import engine as bench
from gemworks.bench import engine_report
from gemworks.bench.engine import Plan, check_names, make_load
from gemworks.bench.engine_load import Load, Record, arrivals, ask, closed_loop, greedy, offer, percentiles, summary
from gemworks.bench.engine_ours import rates
from gemworks.bench.engine_scenarios import SCENARIOS, Setting
from gemworks.bench.system import SystemSpec
from gemworks.engine.engine import EngineStats
from gemworks.engine.types import Timings, TokenEvent
from gemworks.errors import BackendError, ConfigError, RequestError
from gemworks.model.config import RELEASED

VOCAB = 1000
STEP_S = 0.010


class FakeTimer:
    """Time that passes only when an answer takes some or somebody sleeps."""

    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    async def sleep(self, seconds):
        until = self.time + seconds
        while self.time < until:
            before = self.time
            for _ in range(50):  # let the others go first; if nobody takes time, it passes all the same
                await asyncio.sleep(0)
            if self.time == before:
                self.time = min(until, self.time + STEP_S)


class FakeEngine:
    """Takes `token_s` a computed prompt token and STEP_S a drawn one; keeps every prompt in its cache."""

    def __init__(self, timer, *, token_s=0.001, speed=1.0, crowd=1.0):
        self.timer, self.token_s, self.speed, self.crowd = timer, token_s, speed, crowd
        self.texts, self.requests, self.cancelled, self.counts = [], [], 0, EngineStats()

    def submit(self, request):
        if len(request.prompt) > 5000:
            raise RequestError("this request is too long.\nShorten it.")
        self.requests.append(request)
        return FakeHandle(self, request)

    def stats(self):
        return EngineStats(**asdict(self.counts))

    def cached(self, prompt):
        def common(text):
            return next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(text))

        return min(max(map(common, self.texts), default=0), len(prompt) - 1)


class FakeHandle:
    def __init__(self, engine, request):
        self.engine, self.request = engine, request

    def timings(self, index):
        return Timings(prefill_tokens=self.computed, cached_tokens=len(self.request.prompt) - self.computed)

    async def __aiter__(self):
        engine, request = self.engine, self.request
        cached = engine.cached(request.prompt) if request.use_cache else 0
        self.computed = len(request.prompt) - cached
        await asyncio.sleep(0)
        engine.timer.time += self.computed * engine.token_s
        is_crowded = request.key == "other" and any(r.key == "crowd" for r in engine.requests)
        answer = []
        try:
            if request.key == "crowd":
                await asyncio.Event().wait()  # its turn never comes
            for i in range(request.params.max_tokens):
                if i:
                    await asyncio.sleep(0)
                    engine.timer.time += STEP_S / engine.speed * (engine.crowd if is_crowded else 1)
                answer.append((7 * len(request.prompt) + i) % VOCAB)
                engine.counts.steps += 1
                engine.counts.rows_decoded += 1
                engine.counts.step_s += STEP_S
                engine.counts.host_s += STEP_S / 50
                yield TokenEvent(answer[-1], None, "length" if i + 1 == request.params.max_tokens else None)
            engine.texts.append([*request.prompt, *answer[:-1]])
        except asyncio.CancelledError:
            engine.cancelled += 1
            raise


class FakeSource:
    vocab = VOCAB

    def __init__(self, timer, **engine):
        self.timer, self.engine, self.opened = timer, engine, []

    def open(self, *, speculation=False, **asked):
        made = FakeEngine(self.timer, **{**self.engine, "speed": 2.0 if speculation else 1.0})
        self.opened.append((asked, made))
        return made


@pytest.fixture
def timer():
    return FakeTimer()


def test_arrivals_are_a_poisson_process_and_the_same_again():
    load = Load(rate=50.0, seconds=60.0, prompt=4, answer=2, seed=3)
    found = arrivals(load, VOCAB)
    assert found == arrivals(load, VOCAB)
    assert found != arrivals(Load(rate=50.0, seconds=60.0, prompt=4, answer=2, seed=4), VOCAB)
    gaps = np.diff([0.0, *(one.at_s for one in found)])
    assert len(found) == pytest.approx(3000, rel=0.06)
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.06)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.06)  # exponential
    assert found[-1].at_s < 60


def test_a_mix_has_both_kinds_behind_one_prefix_and_keys_in_turn():
    load = make_load(rate=40.0, seconds=10.0, prompt=5, answer=3, shared_prefix=7, mix="long, short", keys=3, seed=0)
    found = arrivals(load, VOCAB)
    shared = found[0].request.prompt[:7]
    assert {one.request.prompt[:7] for one in found} == {shared}
    assert {(one.kind, len(one.request.prompt)) for one in found} == {("short", 12), ("long", 47)}
    assert load.longest == 7 + 40 + 3
    assert len({one.request.prompt[7:] for one in found}) == len(found)
    assert [one.request.key for one in found[:4]] == ["key 0", "key 1", "key 2", "key 0"]
    assert {one.request.params.max_tokens for one in found} == {3}


def test_times_count_from_when_a_request_should_have_come(timer):
    """The second arrives at 0.5 s; the engine is with the first until 1.0 s in this fake, which does one at a time."""
    engine = FakeEngine(timer, token_s=0.1)
    coming = arrivals(Load(rate=1.0, seconds=5.0, prompt=10, answer=3), VOCAB)
    records = asyncio.run(offer(engine, coming, timer))
    assert [record.offered_s for record in records] == pytest.approx([100 + one.at_s for one in coming])
    assert all(record.ttft_s >= 1.0 - 1e-9 for record in records)
    assert all(len(record.times) == 3 and len(record.gaps_s) == 2 for record in records)
    assert [record.computed_tokens + record.cached_tokens for record in records] == [10] * len(records)


def test_a_refusal_is_a_record_not_an_end(timer):
    engine = FakeEngine(timer)
    record = asyncio.run(ask(engine, greedy([3] * 6000, 2), timer))
    assert record.error == "RequestError: this request is too long.\nShorten it."
    assert record.ttft_s is None and record.gaps_s == [] and record.decode_per_second == 0.0


def test_a_closed_loop_asks_when_the_answer_is_there(timer):
    engine = FakeEngine(timer)
    records = asyncio.run(closed_loop(engine, [[greedy([s, i, 5], 2) for i in range(3)] for s in (1, 2)], timer))
    assert len(records) == 6
    first = records[:3]
    assert all(later.offered_s >= before.times[-1] for before, later in itertools.pairwise(first))
    records = asyncio.run(closed_loop(engine, [[greedy([i, 5], 2) for i in range(3)]], timer, [[0.0, 0.5, 2.0]]))
    pauses = [later.offered_s - before.times[-1] for before, later in itertools.pairwise(records)]
    assert pauses == [pytest.approx(0.5, abs=1e-6), pytest.approx(2.0, abs=1e-6)]


def record(offered, times, **more):
    given = {"key": "a", "kind": "short", "prompt_tokens": 10} | more
    return Record(given.pop("key"), given.pop("kind"), offered, **given, times=times, tokens=[1] * len(times))


def test_the_summary_by_hand():
    done = {"steps": 4, "rows_decoded": 6, "preemptions": 1, "host_s": 0.02, "step_s": 0.5}
    records = [
        record(10.0, [11.0, 11.5, 12.5], cached_tokens=4),
        record(10.5, [14.0], key="b", kind="long", prompt_tokens=30, cached_tokens=6),
        record(11.0, [], error="CapacityError: full"),
    ]
    found = summary(records, done, sequences=3)
    assert found["requests"] == 3 and found["refused"] == 1 and found["errors"] == ["CapacityError: full"]
    assert found["seconds"] == 4.0
    assert found["tokens_per_second"] == 1.0
    assert found["prompt_tokens_per_second"] == 10.0
    assert found["ttft_s"]["p50"] == pytest.approx((1.0 + 3.5) / 2)
    assert found["inter_token_s"] == pytest.approx({"p50": 0.75, "p95": 0.975, "p99": 0.995})
    assert found["by_key"]["b"] == {"ttft_s": {"p50": 3.5, "p95": 3.5, "p99": 3.5}, "inter_token_s": None}
    assert set(found["by_kind"]) == {"short", "long"}
    assert found["occupancy"] == 0.5
    assert found["cached_share"] == 0.25
    assert found["preemptions"] == 1
    assert found["host_share"] == pytest.approx(0.04)


def test_a_summary_of_nothing_divides_by_nothing():
    done = dict.fromkeys(("steps", "rows_decoded", "preemptions", "host_s", "step_s"), 0)
    found = summary([record(1.0, [], error="x")], done, 4)
    assert (found["tokens_per_second"], found["occupancy"], found["host_share"]) == (0.0, 0.0, None)
    assert percentiles([]) is None


def run_scenario(name, timer, source=None, **load):
    given = {"rate": 5.0, "seconds": 2.0, "prompt": 16, "answer": 4} | load
    source = source or FakeSource(timer)
    return SCENARIOS[name](source, Setting(load=Load(**given), sequences=4, repeats=2), timer), source


def targets(figures):
    return {target["text"]: (target["value"], target["is_met"]) for target in figures["targets"]}


def test_load_opens_an_engine_for_the_longest_text(timer):
    figures, source = run_scenario("load", timer, mix=("short", "long"), shared_prefix=20)
    [(asked, engine)] = source.opened
    assert (asked["context"], asked["sequences"]) == (20 + 8 * 16 + 4, 4)
    assert figures["requests"] == len(engine.requests) > 3
    assert figures["occupancy"] == 0.25  # one row a step, of four
    assert figures["host_share"] == pytest.approx(0.02)
    assert len(figures["samples"]["ttft_s"]) == figures["requests"]
    assert len(figures["samples"]["gaps_s"]) == 3 * figures["requests"]


def test_prefix_is_the_second_first_token_over_the_first(timer):
    """1,024 tokens at 1 ms, all but <bos>, then only the 24 of its own."""
    figures, source = run_scenario("prefix", timer)
    assert figures["first_ttft_s"] == pytest.approx(1.023)
    assert figures["second_ttft_s"] == pytest.approx(0.024)
    assert figures["cached_tokens"] == [1000, 1000]
    [(value, is_met)] = targets(figures).values()
    assert value == pytest.approx(24 / 1023) and is_met
    assert len(source.opened[0][1].requests) == 6


def test_chat_counts_what_is_computed_again(timer):
    figures, source = run_scenario("chat", timer)
    assert figures["computed"] == [60] + [61] * 19  # the question, and the last token of the answer before
    assert list(targets(figures).values()) == [(0.0, True)]
    assert figures["tokens"] == 20 * 100 <= source.opened[0][0]["context"]

    class Forgetful(FakeEngine):
        def cached(self, prompt):
            return 0

    source.open = lambda **_: Forgetful(timer)
    figures, _ = run_scenario("chat", timer, source)
    assert list(targets(figures).values()) == [(1960 - 61.0, False)]


def test_fairness_is_the_other_key_beside_a_crowd_over_alone(timer):
    figures, source = run_scenario("fairness", timer, FakeSource(timer, crowd=2.0, token_s=0.0001))
    engine = source.opened[0][1]
    assert sum(request.key == "crowd" for request in engine.requests) == 50
    assert sum(request.key == "other" for request in engine.requests) == 1 + 2 * 12
    assert figures["idle"]["inter_token_s"]["p95"] == pytest.approx(STEP_S)
    assert figures["busy"]["inter_token_s"]["p95"] >= 2 * STEP_S
    assert engine.cancelled == 50  # nobody waits for the crowd's answers


def test_speculation_compares_speeds_and_texts(timer):
    figures, source = run_scenario("speculation", timer)
    assert figures["ratios"] == pytest.approx({"copy": 2.0, "misleading": 2.0, "random": 2.0})
    assert figures["same_text"] == {"copy": True, "misleading": True, "random": True}
    assert [is_met for _, is_met in targets(figures).values()] == [True, True]
    copied = source.opened[0][1].requests[0].prompt
    assert copied[:32] == copied[32:64] and len(copied) == 256


def test_host_keeps_every_row_busy(timer):
    figures, source = run_scenario("host", timer)
    assert len(source.opened[0][1].requests) == 4 * (1 + 2)
    assert list(targets(figures).values()) == [(pytest.approx(0.02), True)]
    assert figures["host_ms"] == pytest.approx(0.2)


def test_an_engine_that_refuses_what_it_is_measured_on_is_an_error(timer):
    class Refuses(FakeEngine):
        def submit(self, request):
            raise RequestError("no.")

    source = FakeSource(timer)
    source.open = lambda **_: Refuses(timer)
    with pytest.raises(BackendError, match="the engine refused what it was to be measured on: RequestError: no"):
        run_scenario("prefix", timer, source)


def test_rates_are_of_the_time_when_every_stream_decodes():
    """The second starts at 2, the first ends at 4: two tokens of each came after 2 and not after 4."""
    records = [record(0.0, [1.0, 2.0, 3.0, 4.0]), record(0.0, [2.0, 3.0, 4.0, 5.0])]
    found = rates(records, 0.5, 3)
    assert found == {"seconds": 4.5, "prompt_seconds": 1.5, "decode_per_second": 2.0}
    assert rates([record(0.0, [1.0, 2.0]), record(0.0, [3.0, 4.0])], 0.0, 1)["decode_per_second"] is None


class FakeWorker:
    """A system that computes `pace` tokens a second."""

    def __init__(self, spec, pace):
        self.spec, self.pace, self.calls, self.closed = spec, pace, [], False

    def prepare(self, *, context, sequences):
        self.calls.append((context, sequences))

    def streams(self, *, prompts, count):
        tokens = sum(map(len, prompts)) + count * len(prompts)
        ours = {"resident_bytes": 1000 + len(self.calls)} if self.spec.engine == "engine" else {}
        return {"seconds": tokens / self.pace, "decode_per_second": self.pace / 10, **ours}

    def scores(self, *, ids, wanted):
        return 1, [math.sin(i) for i in wanted]

    def scenario(self, *, name, setting):
        if name == "chat":
            raise BackendError("engine int4-b32+int8: its process ended with -9.")
        return {"echo": [name, setting["sequences"], setting["load"]["mix"]]}

    def close(self):
        self.closed = True


@pytest.fixture
def measured(tmp_path):
    def run(names, rival=True, sequences=16, paces=None):
        paces = paces or {"engine": 300.0, "llama.cpp": 100.0}
        workers, said = [], []

        def connect(spec, log):
            workers.append(FakeWorker(spec, paces[spec.engine]))
            return workers[-1]

        plan = Plan(
            model="1b",
            config=RELEASED["1b"],
            ours=SystemSpec("engine", "int4-b32+int8", "1b", 2),
            rival=SystemSpec("llama.cpp", "q4_0", "1b.gguf", 2) if rival else None,
            names=names,
            setting=Setting(load=Load(), sequences=sequences, repeats=2),
            log=tmp_path / "log",
        )
        return bench.run(plan, said.append, connect), said, workers

    return run


def test_streams_take_turns_with_the_rival_after_scores_are_compared(measured):
    report, said, workers = measured(("streams",))
    found = report["scenarios"]["streams"]
    assert list(found["rows"]) == ["1", "4", "8", "16"]
    row = found["rows"]["8"]
    assert row["engine int4-b32+int8"]["tokens_per_second"] == {"median": 300.0, "values": [300.0, 300.0]}
    assert row["llama.cpp q4_0"]["decode_per_second"]["median"] == 10.0
    verdicts = targets(found)
    assert verdicts["8 streams, tokens/s in all, over llama.cpp q4_0"] == (pytest.approx(3.0), True)
    assert verdicts["1 streams, decoded tokens/s, over llama.cpp q4_0"] == (pytest.approx(3.0), True)
    assert verdicts["16 streams, memory, last round over first"][1]
    assert any("scores 0.0% apart" in line for line in said)
    assert all(worker.closed for worker in workers)
    assert workers[0].calls[0] == (193, 16)  # one engine for all numbers of streams


def test_without_a_rival_or_with_fewer_rows_what_can_be_measured_is(measured):
    report, _, _ = measured(("streams",), rival=False, sequences=4)
    found = report["scenarios"]["streams"]
    assert list(found["rows"]) == ["1", "4"]
    assert targets(found)["4 streams, tokens/s in all, over llama.cpp"] == (None, None)


def test_a_slower_engine_misses_its_target(measured):
    report, _, _ = measured(("streams",), paces={"engine": 150.0, "llama.cpp": 100.0})
    verdicts = targets(report["scenarios"]["streams"])
    assert verdicts["4 streams, tokens/s in all, over llama.cpp q4_0"] == (pytest.approx(1.5), False)


def test_a_scenario_that_fails_is_told_and_the_others_go_on(measured):
    report, said, workers = measured(("load", "chat", "host"), rival=False)
    assert list(report["scenarios"]) == ["load", "host"]
    assert report["scenarios"]["load"]["echo"] == ["load", 16, ("short",)]
    assert "engine int4-b32+int8: its process ended with -9." in said
    assert workers[0].closed
    with pytest.raises(BackendError, match="1b: nothing could be measured"):
        measured(("chat",), rival=False)


@pytest.mark.parametrize("asked", ["dance", "load,dance", ""])
def test_an_unknown_scenario_is_refused(asked):
    with pytest.raises(ConfigError, match="--scenario must be all or some of streams, load, prefix, chat, fairness"):
        check_names(asked)
    assert check_names("all") == bench.NAMES
    assert check_names("host, load") == ("host", "load")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rate": 0.0}, "--rate must be above 0, got 0.0."),
        ({"answer": 0}, "--answer must be above 0, got 0."),
        ({"shared_prefix": -1}, "--shared-prefix must be 0 or more tokens, got -1."),
        ({"mix": "short,huge"}, '--mix must be some of short,long, got "huge".'),
        ({"mix": ""}, '--mix must be some of short,long, got "".'),
    ],
)
def test_a_load_that_is_none_is_refused(asked, message):
    with pytest.raises(ConfigError) as refused:
        make_load(**({"mix": "short"} | asked))
    assert str(refused.value) == message


def test_every_scenario_prints_and_its_figures_are_json(timer, measured):
    report, _, _ = measured(("streams",))
    report["scenarios"] |= {name: run_scenario(name, timer)[0] for name in SCENARIOS}
    text = engine_report.text(report)
    for line in (
        "1b, up to 16 sequences",
        "      engine int4-b32+int8           300 tokens/s in all (300 to 300), decoded 30.0 (30.0 to 30.0)",
        "    first token         1,023 ms, then 24.0 ms",
        "    met           time to first token, shared 1,000 tokens, second over first: 0.0235 (wanted <= 0.12)",
        "    host's share        2.0% of step time",
        "    copy                100 tokens/s without, 200 with: 2.00x, same text, 0 of 0 guesses right",
    ):
        assert line in text.splitlines()
    short = bench.without_samples(report)
    assert "samples" in report["scenarios"]["load"] and "samples" not in short["scenarios"]["load"]
    assert json.loads(json.dumps(short))["scenarios"]["host"]["targets"][0]["is_met"] is True


def test_the_picture_has_both_times(timer, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gemworks[bench])")
    report = {"model": "1b", "scenarios": {"load": run_scenario("load", timer)[0]}}
    failed = {"model": "4b", "scenarios": {}}
    empty = {"model": "270m", "scenarios": {"load": {"samples": {"ttft_s": [], "gaps_s": []}}}}
    for name, reports in (("load", [report, failed]), ("empty", [empty]), ("failed", [failed])):
        engine_report.draw(reports, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_picture_without_a_load_is_refused_at_once():
    with pytest.raises(ConfigError, match='--plot draws a load: add load to --scenario, got "host,chat"'):
        engine_report.check_plot(("host", "chat"))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--model must be one of 270m, 1b, 4b, 12b, 27b or a directory with a model"):
        bench.find_systems(str(tmp_path), tmp_path, "bf16", print, threads=2, has_rival=False)


def test_the_rival_s_file_is_taken_from_beside_the_weights(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(bench.files, "make_missing", lambda name, wanted, *_: made.append(wanted) or wanted)
    monkeypatch.setattr(bench, "open_checkpoint", lambda _: contextlib.nullcontext(SimpleNamespace(config="config")))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "a-q4_0.gguf").touch()
    cache = tmp_path / "cache"
    for name, gguf in (("a", tmp_path / "a-q4_0.gguf"), ("b", cache / "b-q4_0.gguf")):
        found = bench.find_systems(str(tmp_path / name), cache, "bf16", print, threads=2, has_rival=True)
        assert found["rival"].path == str(gguf)
        assert found["ours"] == SystemSpec("engine", "bf16", str(tmp_path / name), 2)
        assert (found["model"], found["config"]) == (name, "config")
