"""One arm after the other: trained, measured, its measurements written. What is there is not done again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from gemworks.data.batches import PackedSource
from gemworks.data.writing import read_json, replace_json
from gemworks.model.costs import num_parameters
from gemworks.train.assemble import assemble
from gemworks.train.checkpoints import Checkpoints
from gemworks.train.export import export
from gemworks.train.loop import train
from gemworks.train.recipe import Recipe, flat
from gemworks.train.state import state_shapes
from recipes.ablations.corpus import Corpus
from recipes.ablations.measuring import cache_bytes, held_out
from recipes.ablations.plan import Arm, Plan

MEASURED = "measured.json"
_HELD_ROWS = 8  # of a batch that is measured with

Tell = Callable[[str], None]


def run_arms(
    out: Path, arms: Sequence[Arm], corpus: Corpus, plan: Plan, tell: Tell, should_stop: Callable[[], bool]
) -> bool:
    """Run what is missing of `arms`, in their order. False where it was stopped before the end."""
    for i, arm in enumerate(arms, 1):
        path = out / "runs" / arm.name / MEASURED
        if path.is_file():
            continue
        recipe = replace(arm.recipe, data=str(corpus.train))
        if arm.teacher:
            recipe = replace(recipe, teacher=str(out / "runs" / arm.teacher / "model"))

        def note(record: dict[str, Any], name: str = f"{i} of {len(arms)}, {arm.name}", last: int = recipe.steps):
            tell(f"{name}: step {record['step']} of {last}, loss {record['loss']:.3f}")

        result = train(assemble(recipe), path.parent, observe=[note], should_stop=should_stop, measure_peak=False)
        if not result.is_done:
            return False
        export(path.parent / "model", recipe, result.state, tokenizer=corpus.tokenizer)
        replace_json(path, _measure(path.parent, arm, recipe, corpus, plan))
        jax.clear_caches()  # a step is compiled for its recipe, and no other arm has it
    return True


def collect(out: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    """Return {arm: measurements} of those arms that are done."""
    paths = {arm.name: out / "runs" / arm.name / MEASURED for arm in arms}
    return {name: read_json(path, "an arm's measurements") for name, path in paths.items() if path.is_file()}


def _measure(directory: Path, arm: Arm, recipe: Recipe, corpus: Corpus, plan: Plan) -> dict[str, Any]:
    """The curve over the last `points` checkpoints and, of the last one, everything."""
    source = PackedSource.open(corpus.held, batch_rows=_HELD_ROWS, length=plan.tokens, seed=0)
    curve: list[dict[str, float]] = []
    last: dict[str, Any] = {}
    shapes = state_shapes(recipe)
    with Checkpoints(directory, recipe.execution) as checkpoints:
        for step in checkpoints.steps()[-arm.points :]:
            state = checkpoints.load(shapes, step=step)
            assert state is not None
            last = held_out(state.params, recipe.model, source)
            curve.append({"step": step, "tokens": step * recipe.rows * recipe.tokens, "loss": last["loss"]})
    return {
        **last,
        "curve": curve,
        "parameters": num_parameters(recipe.model),
        "tokens": recipe.steps * recipe.rows * recipe.tokens,
        "seed": recipe.seed,
        "cache_bytes": cache_bytes(recipe.model, plan.tokens),
        "recipe": {k: v for k, v in flat(recipe).items() if not k.startswith(("model.layers", "data", "teacher"))},
    }
