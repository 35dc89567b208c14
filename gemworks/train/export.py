"""The trained parameters as a model directory that everything else opens."""

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemworks.parallel import multihost
from gemworks.train.recipe import Recipe
from gemworks.train.state import State
from gemworks.weights.save import Source, save_hf

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def gathered(state: State) -> State:
    """Return the state with all of what `export` writes on the host; every process of a run calls this."""
    if multihost.count() == 1:
        return state
    kept = {name: multihost.whole(array) for name, array in (state.ema or state.params).items()}
    return state._replace(opt=None, params={} if state.ema else kept, ema=kept if state.ema else {})


def export(out: Path, recipe: Recipe, state: State, *, tokenizer: Path | None = None) -> None:
    """Write the moving average where the recipe keeps one, else the parameters, in bf16, with the tokenizer's files."""
    arrays: Any = state.ema or state.params

    def source(name: str) -> Source:
        return Source("BF16", lambda: np.asarray(arrays[name]).astype(ml_dtypes.bfloat16))

    def beside(directory: Path) -> None:
        for name in _TOKENIZER_FILES:
            if tokenizer is not None and (tokenizer / name).is_file():
                shutil.copy(tokenizer / name, directory / name)

    save_hf(out, recipe.model, {name: source(name) for name in arrays}, beside=beside, force=True)
