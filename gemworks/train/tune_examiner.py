"""What a tuning run finds out between steps: the loss of what was held out, answers to samples; and what it keeps.

The best state so far lies in its final form under its final name, so a run that is killed leaves it there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_dtypes
import numpy as np

from gemworks.data.chat_rows import ChatSource, PairRows
from gemworks.train.adapters.base import Base
from gemworks.train.adapters.peft import save_adapter
from gemworks.train.feed import rows_of
from gemworks.train.forward import Rows
from gemworks.train.loss import Call, Terms
from gemworks.train.metrics import METRICS_FILE, read
from gemworks.train.recipe import Execution, Recipe
from gemworks.train.state import State
from gemworks.train.trained import trained_model
from gemworks.train.tune_samples import Speaker
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.convert import write_directory
from gemworks.weights.save import Source
from gemworks.weights.vision_source import vision_config_of

if TYPE_CHECKING:
    from gemworks.train.tune import Prepared

History = list[tuple[int, float]]


def restored_history(out: Path) -> History:
    """Return (step, validation loss) of the examinations up to the last checkpoint in `out`."""
    folder, path = out / "checkpoints", out / METRICS_FILE
    if not folder.is_dir() or not path.is_file():
        return []
    last = max((int(one.name) for one in folder.iterdir() if one.name.isdecimal()), default=0)
    records = [one for one in read(path) if one.get("validation_loss") is not None]
    return [(one["step"], one["validation_loss"]) for one in records if one["step"] <= last]


class Examiner:
    """Called by the loop with states; remembers the losses. `path`: where the best is written, if it should be."""

    def __init__(self, prepared: "Prepared", base: Base | None, path: Path, history: History, *, should_write: bool):
        self._prepared, self._base, self._path = prepared, base, path
        self._should_write = should_write
        self._history = list(history)
        recipe = prepared.recipe
        self._rows_at_once = recipe.rows // recipe.accumulate

        self._computed = _computed(replace(recipe, execution=Execution()))
        self._speaker = Speaker(recipe, prepared.samples, prepared.tokenizer) if prepared.samples else None

    @property
    def best(self) -> float | None:
        """The least validation loss so far."""
        return min((loss for _, loss in self._history), default=None)

    @property
    def best_step(self) -> int:
        """The step it was found at; 0 where nothing was examined."""
        return next((step for step, loss in self._history if loss == self.best), 0)

    @property
    def is_enough(self) -> bool:
        """Whether validation has found nothing better for `patience` examinations."""
        patience = self._prepared.options.patience
        later = sum(step > self.best_step for step, _ in self._history)
        return patience > 0 and later >= patience

    def __call__(self, step: int, state: State) -> dict[str, Any]:
        """Return what goes into the step's record; keep the state if it is the best."""
        params = state.ema or state.params
        record = self.figures(params)
        if "validation_loss" in record:
            loss, best = record["validation_loss"], self.best
            self._history.append((step, loss))
            if self._should_write and (best is None or loss < best):
                write_trained(self._prepared, state, self._path)
        if self._speaker is not None:
            answers = self._speaker.answers(params, self._base)
            record["samples"] = [
                {"prompt": one.prompt, "wanted": one.wanted, "answer": answer}
                for one, answer in zip(self._prepared.samples, answers, strict=True)
            ]
        return record

    def figures(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the loss of what was held out, and what the method says beside; {} where nothing was."""
        held = self._prepared.held
        if held is None:
            return {}
        total, weight, more = 0.0, 0.0, dict[str, float]()
        params = jax.device_put(dict(params), jax.devices()[0])  # as the loop's are, or they were compiled for twice
        for rows in _every_row(held, self._rows_at_once):
            terms = jax.device_get(self._computed(params, self._base, rows))
            total, weight = total + float(terms.total), weight + float(terms.weight)
            for name, value in terms.more.items():
                more[name] = more.get(name, 0.0) + float(value)
        weight = max(weight, 1e-8)
        shown = {f"validation_{name}": value / weight for name, value in more.items() if name != "nll"}
        return {"validation_loss": total / weight} | shown


def write_trained(prepared: "Prepared", state: State, out: Path) -> None:
    """Write what was trained: an adapter in PEFT's form, or a whole model with its tokenizer and its vision half."""
    recipe = prepared.recipe
    params = state.ema or state.params
    if recipe.adapter is not None:
        arrays = {name: np.asarray(array) for name, array in params.items()}
        has_vision = vision_config_of(prepared.path) is not None
        save_adapter(
            out,
            recipe.adapter,
            arrays,
            recipe.model,
            base_name=prepared.name,
            has_vision=has_vision,
            force=True,
        )
        return
    is_wide = recipe.dtype == "float32"

    def source(name: str) -> Source:
        dtype = np.float32 if is_wide else ml_dtypes.bfloat16
        return Source("F32" if is_wide else "BF16", lambda: np.asarray(params[name]).astype(dtype))

    with open_checkpoint(prepared.path) as checkpoint:
        write_directory(checkpoint, out, {name: source(name) for name in checkpoint.entries}, force=True)


@lru_cache(maxsize=4)
def _computed(recipe: Recipe) -> Callable[[Any, Base | None, Any], Terms]:
    @jax.jit
    def computed(params: Mapping[str, Any], base: Base | None, rows: Any) -> Terms:
        call = Call(jax.random.key(0), remat=False, base=None if base is None else base.model)
        return recipe.method(trained_model(recipe, params, base), rows, call)

    return computed


def _every_row(held: ChatSource, rows_at_once: int) -> Iterator[Any]:
    """All rows of a source, some at a time; what fills the last ones up does not count."""
    for first in range(0, held.num_rows, rows_at_once):
        numbers = list(range(first, min(first + rows_at_once, held.num_rows)))
        rows = rows_of(held.rows(numbers + numbers[-1:] * (rows_at_once - len(numbers))))
        if isinstance(rows, PairRows):
            rows.pairs_B[len(numbers) :] = 0
        else:
            assert isinstance(rows, Rows)
            np.asarray(rows.loss_mask_BT)[len(numbers) :] = 0
        yield rows
