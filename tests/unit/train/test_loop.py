"""The loop: resuming is bitwise, a changed recipe is refused, what is no number is named, full disks lose nothing."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nano_runs import RandomRows, nano_recipe

from gemworks.errors import ConfigError, StorageError
from gemworks.train import checkpoints, loop, metrics
from gemworks.train.checkpoints import Checkpoints
from gemworks.train.feed import put_batch
from gemworks.train.guard import first_bad
from gemworks.train.loop import NotFinite, Run, begin, train
from gemworks.train.recipe import Execution, Optimizer
from gemworks.train.state import random_params
from gemworks.train.step import make_step


def run_of(recipe, **changes) -> Run:
    return Run(recipe, RandomRows(recipe), **changes)


def go(recipe, directory: Path, **options):
    return train(run_of(recipe), directory, measure_peak=False, **options)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 steps without a stop: its directory and its last state."""
    directory = tmp_path_factory.mktemp("whole")
    result = go(nano_recipe(), directory)
    assert result.is_done
    return directory, jax.device_get(result.state)


def test_stopped_and_continued_is_bitwise_the_same(whole, tmp_path):
    seen = []
    first = go(nano_recipe(), tmp_path, observe=[seen.append], should_stop=lambda: len(seen) >= 3)
    stopped_at = int(first.state.step)
    assert not first.is_done and 3 <= stopped_at < 8
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as a killed run leaves it: a step too many, and half a line
        file.write(json.dumps({"step": stopped_at + 1, "loss": 0.0}) + '\n{"step": 9')
    second = go(nano_recipe(), tmp_path)
    assert_same(whole[1], jax.device_get(second.state))
    records, expected = (metrics.read(folder / "metrics.jsonl") for folder in (tmp_path, whole[0]))
    assert [r["step"] for r in records] == list(range(1, 9))
    assert [(r["loss"], r["grad_norm"]) for r in records] == [(r["loss"], r["grad_norm"]) for r in expected]


def test_finished_run_does_nothing_more(whole):
    assert_same(whole[1], jax.device_get(go(nano_recipe(), whole[0]).state))


def test_loss_falls_and_records_say_how(whole):
    records = metrics.read(whole[0] / "metrics.jsonl")
    assert records[0]["loss"] > records[-1]["loss"] + 1
    assert records[0]["rate"] == pytest.approx(0.005) and records[1]["rate"] == pytest.approx(0.01)
    assert all(r["tokens_per_second"] > 0 and r["targets"] > 0 for r in records)


def test_changed_recipe_is_refused_with_the_difference(whole):
    changed = nano_recipe(optimizer=Optimizer(peak=2e-2), seed=1)
    with pytest.raises(ConfigError, match=r"optimizer\.peak   0\.01 -> 0\.02\n  seed   0 -> 1"):
        go(changed, whole[0])


def test_other_data_is_another_recipe(whole):
    recipe = nano_recipe()
    with pytest.raises(ConfigError, match="data_digest   random rows -> other rows"):
        train(Run(recipe, RandomRows(recipe, digest="other rows")), whole[0])


def test_how_often_to_save_may_change(whole):
    recipe = nano_recipe(checkpoint_every=3, keep=7)
    checkpoints.claim(whole[0], recipe, "random rows")


def test_last_checkpoints_are_kept_and_some_for_ever(tmp_path):
    recipe = nano_recipe(checkpoint_every=1, keep=2)
    recipe = replace(recipe, execution=replace(recipe.execution, keep_every=4))
    go(recipe, tmp_path)
    with Checkpoints(tmp_path, recipe.execution) as kept:
        assert kept.steps() == [4, 7, 8]


def test_loss_that_is_not_finite_stops_the_run_with_the_state_before_it_saved(whole, tmp_path):
    recipe = nano_recipe()

    class Poisoned(RandomRows):
        def batch(self, step):
            rows = super().batch(step)
            return rows._replace(loss_mask_BT=np.full_like(rows.loss_mask_BT, np.inf)) if step == 3 else rows

    with pytest.raises(NotFinite, match=r"step 4: loss nan.*: the stack's output is finite and the loss is not"):
        train(Run(recipe, Poisoned(recipe)), tmp_path, measure_peak=False)
    with Checkpoints(tmp_path, recipe.execution) as kept:
        assert kept.steps() == [3]
    assert_same(whole[1], jax.device_get(go(recipe, tmp_path).state))


@pytest.mark.parametrize(
    ("broken", "value", "named"),
    [
        ("layers.1.ffw.down.weight", 3e38, "the first module whose output is not finite is layers.1"),
        ("embed.weight", 3e38, "the first module whose output is not finite is embed"),
        ("layers.0.attn.q_norm.scale", np.nan, "the parameter layers.0.attn.q_norm.scale is not finite already"),
    ],
)
def test_first_module_that_is_not_finite_is_named(broken, value, named):
    recipe = nano_recipe()
    params = random_params(recipe.model, 0)
    params[broken][:] = value
    state = begin(run_of(recipe, initial=lambda: params), None, None)
    assert first_bad(recipe, state, put_batch(RandomRows(recipe).batch(0), recipe, None), None) == named


def test_disk_too_small_for_a_checkpoint_is_one_sentence(tmp_path, monkeypatch, whole):
    class Usage:
        free = 1000

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes, and its disk has 1,000 bytes free"):
        loop.Checkpoints(tmp_path, nano_recipe().execution).save(1, jax.tree.map(jnp.asarray, whole[1]))


def step_of(recipe):
    """The compiled step that the loop of a run like `whole` uses: made once."""
    return make_step(replace(recipe, execution=Execution(mesh=recipe.execution.mesh)))


def test_step_that_is_not_finite_changes_nothing_nor_do_those_after_it():
    recipe = nano_recipe()
    state, step = begin(run_of(recipe), None, None), step_of(recipe)
    before = jax.device_get(state)
    bad = RandomRows(recipe).batch(0)._replace(loss_mask_BT=np.full((recipe.rows, recipe.tokens), np.inf, np.float32))
    state, seen = step(state, np.int32(0), put_batch(bad, recipe, None), None)
    assert not seen.is_finite
    state, _ = step(state, np.int32(1), put_batch(RandomRows(recipe).batch(1), recipe, None), None)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_moving_average_follows_the_parameters():
    recipe = nano_recipe()
    state, step = begin(run_of(recipe), None, None), step_of(recipe)
    expected = np.asarray(state.params["embed.weight"])
    for n in range(3):
        state, _ = step(state, np.int32(n), put_batch(RandomRows(recipe).batch(n), recipe, None), None)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["embed.weight"])
    np.testing.assert_allclose(state.ema["embed.weight"], expected, rtol=1e-6)
