"""The studies: arms differ in what their name says, tables say what the measurements do, a run goes on where it was."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemworks.engine.shapes import PAGE_SIZE
from gemworks.errors import ConfigError
from gemworks.train.distill import Distill
from gemworks.train.loss import NextToken
from gemworks.train.recipe import flat
from recipes.ablations import corpus, running, summary
from recipes.ablations.measuring import cache_bytes
from recipes.ablations.plan import Plan, Shape, arms, attention_name, attention_settings, config, student_name

PLAN = Plan()


def test_arms_are_unique_and_teachers_come_first():
    names = [arm.name for arm in arms(PLAN)]
    assert len(names) == len(set(names)) == 2 + 18 + 21
    for arm in arms(PLAN):
        assert not arm.teacher or names.index(arm.teacher) < names.index(arm.name)


def test_students_of_a_seed_differ_in_their_lesson_only():
    found = {arm.name: arm.recipe for arm in arms(PLAN)}
    for seed in PLAN.seeds:
        scratch, taught = (found[student_name(lesson, "long", seed)] for lesson in ("scratch", "large"))
        assert isinstance(scratch.method, NextToken) and isinstance(taught.method, Distill)
        assert replace(taught, method=scratch.method) == scratch
    first, second = (found[student_name("small", "long", seed)] for seed in (0, 1))
    assert replace(second, seed=0) == first != second


def test_arms_of_attention_differ_in_their_layers_only():
    found = {arm.name: flat(arm.recipe) for arm in arms(PLAN)}
    plain = found[attention_name(5, 64, 0)]
    for ratio, window in attention_settings(PLAN):
        other = found[attention_name(ratio, window, 0)]
        assert {k for k in plain if plain[k] != other[k]} <= {"model.layers"}


@pytest.mark.parametrize(("ratio", "wanted"), [(1, [1, 3, 5, 7]), (3, [3, 7]), (5, [5]), (7, [7])])
def test_global_layers_lie_where_the_ratio_says(ratio, wanted):
    made = config(PLAN, PLAN.attention, ratio, 64)
    assert [i for i, spec in enumerate(made.layers) if not spec.is_local] == wanted
    assert made.local_spec is not None and made.local_spec.window == 64


def test_caches_are_counted_on_the_pools():
    """Two of eight layers global: pages of the context, and page 0; six rings of the window."""
    made, heads = config(PLAN, PLAN.attention, 3, 64), 2 * 2 * PLAN.attention.head_dim  # keys and values, 2 bytes
    found = cache_bytes(made, 512)
    assert found == heads * (2 * (512 + PAGE_SIZE) + 6 * 64)
    assert cache_bytes(made, 1024) - found == heads * 2 * 512  # rings do not grow


def test_interval_is_students_t():
    """Of 1, 2, 4 by hand: mean 7/3, standard deviation 1.5275, quantile 4.3027 with two degrees of freedom."""
    found = summary.interval([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3) and found.half == pytest.approx(4.3027 * 1.5275 / 3**0.5, rel=1e-4)
    assert np.isnan(summary.interval([1.0]).half)


def measured(loss: float, steps: int = 360) -> dict:
    curve = [{"step": i, "tokens": i * 2048, "loss": loss + 1 / i} for i in range(60, steps + 1, 60)]
    return {"loss": loss, "curve": curve, "by_position": [loss] * 5 + [None], "cache_bytes": 1000}


def made_up() -> dict[str, dict]:
    """Losses by hand: large is 0.1 below scratch, small 0.02 above large when long and below when short."""
    found = {}
    for seed in PLAN.seeds:
        for budget, crossing in (("short", -0.02), ("long", 0.02)):
            base = 3.0 + 0.1 * seed
            for lesson, loss in (("scratch", base), ("large", base - 0.1), ("small", base - 0.1 + crossing)):
                found[student_name(lesson, budget, seed)] = measured(loss)
        for ratio, window in attention_settings(PLAN):
            found[attention_name(ratio, window, seed)] = measured(2.0 + 0.1 * seed + 0.001 * (ratio - 5))
    return found


def test_tables_pair_arms_of_one_seed():
    """Seeds lie 0.1 apart, differences are the same in each: the intervals have no width."""
    short, long = summary.students(made_up(), PLAN)
    assert short["large - small"] == pytest.approx((0.02, 0, 3), abs=1e-9)
    assert long["large - small"] == pytest.approx((-0.02, 0, 3), abs=1e-9)
    assert summary.curves(made_up(), PLAN)["large - scratch"][-1] == (360 * 2048, pytest.approx((-0.1, 0, 3), abs=1e-9))
    by_setting = {(row["ratio"], row["window"]): row for row in summary.attention(made_up(), PLAN)}
    assert by_setting[1, 64]["percent"] == pytest.approx((-0.4, 0, 3), abs=1e-9)
    assert by_setting[5, 64]["difference"].mean == 0


def test_tables_of_an_unfinished_run_hold_what_is_there():
    some = {name: arm for name, arm in made_up().items() if name.endswith("seed0")}
    text = summary.tables(some, [{"name": "global only", "context": 4096, "bytes": 2**20}], PLAN)
    assert "+-nan" in text.replace(" ", "") and "1.0 MiB" in text
    assert summary.tables({}, [], PLAN)


def test_documents_are_held_out_by_their_text(tmp_path):
    texts = [f"text {i} of many" for i in range(400)]
    held = [text for text in texts if corpus.is_held_out(text)]
    assert 1 <= len(held) <= 20
    with pytest.raises(ConfigError, match="to hold out"):
        corpus.prepare(tmp_path, str(tmp_path / "nothing-*.jsonl"), PLAN)


def tiny_plan() -> Plan:
    shape = Shape(dim=16, ffw=16, layers=2, heads=1, head_dim=8)
    return Plan(
        seeds=(0,), vocabulary=600, tokens=32, student=shape, small=shape, large=shape, attention=shape, draws=8,
        teacher_steps=4, budgets=(("short", 4), ("long", 8)), points=2, attention_steps=4, ratios=(1,), ratio=1,
        windows=(8,), window=8,
    )  # fmt: skip


def a_corpus(path: Path) -> str:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(300)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=60))}) + "\n" for _ in range(300)]
    (path / "some.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(path / "some*.jsonl")


@pytest.mark.exhaustive
def test_a_stopped_study_goes_on_and_gives_the_same(tmp_path):
    """All arms of the smallest plan in one go, and stopped in the middle of an arm: the same measurements."""
    plan = tiny_plan()
    made = corpus.prepare(tmp_path / "corpus", a_corpus(tmp_path), plan)
    found = []
    for name, stop_after in (("whole", 10**9), ("parts", 9)):
        turns: list[int] = []

        def should_stop(turns=turns, stop_after=stop_after) -> bool:
            turns.append(0)
            return len(turns) == stop_after

        out = tmp_path / name
        done = running.run_arms(out, arms(plan), made, plan, lambda _: None, should_stop)
        assert done == (name == "whole")
        assert running.run_arms(out, arms(plan), made, plan, lambda _: None, should_stop)
        found.append(running.collect(out, arms(plan)))
    whole, parts = found
    assert whole == parts and len(whole) == len(arms(plan))
    text = summary.write(tmp_path / "whole", plan, tmp_path)
    assert "nan" in text  # one seed has no interval
    assert (tmp_path / "studies-students.png").is_file() and (tmp_path / "studies-attention.png").is_file()
