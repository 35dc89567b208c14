"""Runs with adapters: what is trained, that the base is not, resuming, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from adapted_runs import adapted_recipe, base_of, run_of

from gemworks.errors import ConfigError
from gemworks.train.adapters.kinds import LoRA
from gemworks.train.loop import Run, train
from gemworks.train.recipe import Optimizer, Schedule


def bytes_of(base) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(base)]


def test_a_quantized_base_is_the_same_bits_after_a_run_that_learns(tmp_path):
    recipe = adapted_recipe(LoRA(rank=4, dora=True, base="int4-b32,embed=int8"), steps=4)
    base = base_of(recipe)
    before, seen = bytes_of(base), []
    result = train(run_of(recipe, base), tmp_path, observe=[seen.append], measure_peak=False)
    assert result.is_done and set(result.state.params) == {
        f"layers.{i}.{half}.{t}.{part}"
        for i in range(2)
        for half, ts in (("attn", "qkvo"), ("ffw", ("gate", "up", "down")))
        for t in ts
        for part in ("a", "b", "magnitude")
    }
    assert all(np.abs(np.asarray(x)).max() > 0 for x in result.state.params.values())
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert bytes_of(base) == before
    assert {leaf.dtype.name for leaf in jax.tree.leaves(base.model.layers[0].ffw)} == {"uint8", "float16"}


@pytest.mark.exhaustive
def test_a_run_continues_where_it_was(tmp_path):
    recipe = adapted_recipe(LoRA(rank=2, dropout=0.1), steps=4, checkpoint_every=2)
    base = base_of(recipe)
    whole = train(run_of(recipe, base), tmp_path / "whole", measure_peak=False)
    asked = iter([False, False, True])
    train(run_of(recipe, base), tmp_path / "parts", should_stop=lambda: next(asked), measure_peak=False)
    again = train(run_of(recipe, base), tmp_path / "parts", measure_peak=False)
    assert again.is_done and int(again.state.step) == 4
    for name, array in whole.state.params.items():
        np.testing.assert_array_equal(array, again.state.params[name])
    with pytest.raises(ConfigError, match=r"adapter\.rank   2 -> 4"):
        train(run_of(replace(recipe, adapter=LoRA(rank=4, dropout=0.1)), base), tmp_path / "parts")


def test_an_adapter_without_its_base_is_refused(tmp_path):
    recipe = adapted_recipe(LoRA(rank=2))
    with pytest.raises(ConfigError, match="needs the model it adapts"):
        train(Run(recipe, run_of(recipe, None).source), tmp_path / "a", measure_peak=False)
    other = replace(recipe, model=replace(recipe.model, ffw_dim=32))
    with pytest.raises(ConfigError, match="it is of another shape"):
        train(run_of(other, base_of(recipe)), tmp_path / "b", measure_peak=False)


LEARNERS = {
    "lora": LoRA(rank=8, alpha=16.0),
    "dora": LoRA(rank=8, alpha=16.0, dora=True),
    "qlora": LoRA(rank=8, alpha=16.0, base="int4-b32,embed=int8"),
    "full": None,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", LEARNERS)
def test_twenty_examples_are_learnt_by_heart(method, tmp_path):
    """A key and three values each, on a random base that has seen none: all 60 values right after the run."""
    from examples_by_heart import Examples, right

    adapter = LEARNERS[method]
    recipe = adapted_recipe(
        adapter or LoRA(),
        steps=400,
        rows=20,
        tokens=32,
        optimizer=Optimizer(peak=1e-2 if method == "full" else 3e-2, weight_decay=0.0, b2=0.99),
        schedule=Schedule(kind="cosine", warm_up=10, last=0.01),
        checkpoint_every=10_000,
    )
    base = base_of(recipe)
    if adapter is None:
        recipe, base = replace(recipe, adapter=None), None
    result = train(Run(recipe, Examples(recipe), base=base), tmp_path, measure_peak=False)
    assert right(recipe, result.state.params, base) == 1.0
