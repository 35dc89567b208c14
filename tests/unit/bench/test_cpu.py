"""The whole measurement with systems that take the time they are told to take."""

import math

import pytest

from gemworks.bench import cpu
from gemworks.bench.answers import compare, relative_distance
from gemworks.bench.cpu import Machine, Plan, check_whats
from gemworks.bench.models import specs
from gemworks.bench.peaks import Peaks
from gemworks.bench.rivals import Rivals
from gemworks.bench.starts import Start
from gemworks.errors import BackendError, ConfigError
from gemworks.model.config import RELEASED

# Seconds a token that each engine takes; a system with 8-bit blocks twice that.
PACE = {"ours": 0.01, "llama.cpp": 0.02, "openvino": 0.04, "xla": 0.05}


class FakeSystem:
    """Takes its engine's pace times the tokens, and scores tokens by their number."""

    def __init__(self, spec, log=None):
        if spec.kind == "q4_0-pure":
            raise BackendError("llama.cpp q4_0-pure: the file is damaged.")
        self.spec = spec
        self.pace = PACE[spec.engine] * (2 if spec.kind == "int8-b32" else 1)
        self.contexts = []
        self.closed = False

    def prepare(self, *, context, sequences):
        self.contexts.append(context)
        return {"version": self.spec.engine}

    def prefill(self, *, ids):
        return len(ids) * self.pace / 10

    def decode(self, *, count):
        return count * self.pace

    def batch(self, *, prompts, count):
        return count * self.pace

    def matmuls(self, *, tokens):
        return tokens * self.pace / 20

    def scores(self, *, ids, wanted):
        error = 0.01 if self.spec.engine == "ours" else 0.0
        return 7, [math.sin(i) * (1 + error) for i in wanted]

    def close(self):
        self.closed = True


@pytest.fixture
def measured(tmp_path):
    """measured(whats=(...)) -> (report, what was said, the systems)."""

    def run(model="270m", whats=cpu.rows_of.WHATS, repeats=2):
        systems, said = [], []

        def connect(spec, log):
            systems.append(FakeSystem(spec))
            return systems[-1]

        rivals = Rivals(llama_cpp=True, openvino_python="python")
        wanted = specs(model, tmp_path, rivals, 2, twin=True)
        plan = Plan(model=model, specs=wanted, whats=whats, repeats=repeats, threads=2, log=tmp_path / "log")
        machine = Machine(
            connect=connect,
            peaks=lambda threads: Peaks(threads=threads, read_gb_s=50.0, int8_gmac_s=400.0, fma_gmac_s=100.0),
            start=lambda spec, ids, count, log: Start(1.25, 900_000_000, 8192),
        )
        return cpu.run(plan, said.append, machine), said, systems

    return run


def test_every_row_has_the_systems_that_take_part_and_their_medians(measured):
    report, _, systems = measured()
    medians = {row: {name: f["median"] for name, f in by.items()} for row, by in report["rows"].items()}
    assert medians["decode"] == pytest.approx({
        "ours int4-b32+int8": 100, "llama.cpp q4_0": 50, "ours int4-b32": 100, "ours int8-b32": 50,
        "llama.cpp q8_0": 50, "openvino int4": 25, "xla bf16": 20,
    })  # fmt: skip
    assert medians["prefill"]["openvino int4"] == pytest.approx(250)
    assert medians["batch"] == pytest.approx({"ours int4-b32+int8": 800, "llama.cpp q4_0": 400, "xla bf16": 160})
    assert medians["prefill-8k"] == pytest.approx({"ours int4-b32+int8": 1000})
    assert medians["decode-8k"] == pytest.approx({"ours int4-b32+int8": 100})
    assert medians["matmul"] == pytest.approx({"ours int4-b32+int8": 2000})
    assert medians["start"] == {"ours int4-b32+int8": 1.25}
    assert all(system.closed for system in systems)


def test_memory_is_what_comes_on_top_of_weights_and_cache(measured):
    """3 global layers keep 8,192 tokens and 15 local ones 512, 1 KiB each."""
    report, _, _ = measured(whats=("memory",))
    weights, kv = 225_446_400, 1024 * (3 * 8192 + 15 * 512)
    assert report["rows"]["memory"]["ours int4-b32+int8"]["median"] == 900_000_000 - weights - kv
    assert report["systems"] == {}


def test_a_system_that_does_not_load_is_told_and_left_out(measured):
    report, said, _ = measured(whats=("decode",))
    assert "left out: llama.cpp q4_0-pure: the file is damaged." in said
    assert "llama.cpp q4_0-pure" not in report["systems"]
    by_text = {target["text"]: target for target in report["targets"]}
    assert by_text["decode, ours int4-b32, over llama.cpp q4_0-pure"]["is_met"] is None
    assert by_text["decode, ours int4-b32+int8, over llama.cpp q4_0"]["value"] == pytest.approx(2.0)


def test_only_the_8k_rows_make_room_for_8k(measured):
    _, _, systems = measured(whats=("decode", "long"))
    assert {max(system.contexts) for system in systems if system.spec.kind != "int4-b32+int8"} == {1024}
    assert max(systems[0].contexts) == 8448


def test_answers_are_compared_before_times_are(measured):
    report, said, _ = measured(whats=("decode",))
    assert [(row["ours"], row["rival"], row["agree"]) for row in report["answers"]] == [
        ("ours int4-b32+int8", "llama.cpp q4_0", True),
        ("ours int8-b32", "llama.cpp q8_0", True),
        ("xla bf16", "llama.cpp q8_0", True),
    ]
    assert report["answers"][0]["relative_distance"] == pytest.approx(0.01)
    told = "ours int4-b32+int8 and llama.cpp q4_0: scores 1.0% apart, 3 of 3 next tokens alike: they agree"
    assert said.index(told) < said.index("270m: decode")


def test_other_answers_are_shouted():
    class Other(FakeSystem):
        def scores(self, *, ids, wanted):
            return 9, [1.0 for _ in wanted]

    found = {"ours int8-b32": FakeSystem, "llama.cpp q8_0": Other}
    wanted = specs("270m", cpu.Path(), Rivals(llama_cpp=True), 2, twin=False)
    said = []
    workers = {spec.name: (spec, found[spec.name](spec)) for spec in wanted if spec.name in found}
    [row] = compare(RELEASED["270m"], workers, said.append)
    assert not row["agree"]
    assert said[0].endswith("0 of 3 next tokens alike: THEY DISAGREE, and their times say nothing")


def test_files_of_other_weights_are_not_compared():
    """llama.cpp's own Q4_0 of 4B has its table in Q6_K: scores 24 % apart say nothing about either."""
    wanted = specs("4b", cpu.Path(), Rivals(llama_cpp=True), 2, twin=False)
    said = []
    rows = compare(RELEASED["4b"], {spec.name: (spec, FakeSystem(spec)) for spec in wanted}, said.append)
    assert [(row["ours"], row["agree"]) for row in rows] == [("ours int4-b32+int8", True), ("ours int4-b32", None)]
    assert said[1].endswith("llama.cpp q4_0-q6_k: answers not compared, its table is in Q6_K, ours in int4")


def test_relative_distance_is_of_vectors():
    assert relative_distance([3.0, 4.0], [3.0, 0.0]) == pytest.approx(4 / 3)


@pytest.mark.parametrize("asked", ["sleep", "decode,sleep", ""])
def test_an_unknown_row_is_refused(asked):
    with pytest.raises(ConfigError, match="--what must be all or some of decode, prefill, batch"):
        check_whats(asked)
