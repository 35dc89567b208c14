"""Runs of a model that compiles in a second, on random rows: shared by the trainer's tests and their children."""

from dataclasses import dataclass

import numpy as np
from small_models import small_config

from gemworks.model.config import LayerSpec
from gemworks.parallel.mesh import MeshShape
from gemworks.train.forward import Rows
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule

LOCAL = LayerSpec(window=8, rope_base=10_000.0)
GLOBAL = LayerSpec(window=None, rope_base=1e6, rope_scale=8.0)


def nano_recipe(mesh: MeshShape | None = None, *, checkpoint_every: int = 100, keep: int = 3, **changes) -> Recipe:
    """A local and a global layer, every width a multiple of 8, fp32."""
    model = small_config(num_heads=4, num_kv_heads=2, head_dim=8, model_dim=32, layers=(LOCAL, GLOBAL))
    settings = {
        "steps": 8,
        "rows": 8,
        "tokens": 32,
        "dtype": "float32",
        "ema": 0.5,
        "optimizer": Optimizer(peak=1e-2),
        "schedule": Schedule(warm_up=2),
        "execution": Execution(mesh=mesh or MeshShape(), checkpoint_every=checkpoint_every, keep=keep),
    }
    return Recipe(model=model, **settings | changes)


@dataclass
class RandomRows:
    """Rows of two texts each, with targets that follow from the ids, and masks that leave very unequal numbers."""

    recipe: Recipe
    digest: str = "random rows"

    @property
    def batch_rows(self) -> int:
        return self.recipe.rows

    def batch(self, step: int, rows: slice | None = None) -> Rows:
        return Rows(*(array[rows or slice(None)] for array in self._whole(step)))

    def _whole(self, step: int) -> Rows:
        B, T, V = self.recipe.rows, self.recipe.tokens, self.recipe.model.vocab_size
        rng = np.random.default_rng([7, step])
        ids = np.cumsum(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32) % V
        cut = rng.integers(T // 4, T - 1, (B, 1))
        index = np.arange(T)[None]
        segment = (1 + (index >= cut)).astype(np.int32)
        position = np.where(index >= cut, index - cut, index).astype(np.int32)
        mask = (rng.random((B, T)) < np.linspace(0.05, 1, B)[:, None]).astype(np.float32)
        return Rows(ids, (ids + 1) % V, mask, segment, position)
