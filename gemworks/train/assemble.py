"""From a recipe to what the loop needs: data opened, models to start from and to learn from read."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gemworks.data.batches import PackedSource
from gemworks.errors import ConfigError
from gemworks.model.gemma3 import Gemma3, build
from gemworks.train.adapters.base import Base, read_base
from gemworks.train.distill import Distill, FromStore, check_teacher
from gemworks.train.feed import Source
from gemworks.train.forward import place_model
from gemworks.train.loop import Run, make_layout
from gemworks.train.on_policy import OnPolicy
from gemworks.train.recipe import Recipe
from gemworks.train.store import TaughtSource, TeacherStore
from gemworks.weights import hub
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import load_model

RECIPES = Path("recipes")  # of the directory the command is called in


def find_recipe(name: str, folder: Path = RECIPES) -> Recipe:
    """Return what a recipe's function returns. `name`: NAME of recipes/NAME.py, or FILE.py; ":function" after either.

    The function is `recipe` where none is named. Raises ConfigError where there is no such recipe.
    """
    where, _, function = name.partition(":")
    path = Path(where) if where.endswith(".py") else folder / f"{where}.py"
    if not path.is_file():
        known = sorted(one.stem for one in folder.glob("*.py") if "def recipe(" in one.read_text(encoding="utf-8"))
        near = get_close_matches(where, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f'no recipe "{where}": {path} is not there.{hint}\nKnown: {", ".join(known) or "none"}; or give a file.'
        )
    found = getattr(_module(path), function or "recipe", None)
    made = found() if callable(found) else None
    if not isinstance(made, Recipe):
        raise ConfigError(f"{path}: {function or 'recipe'}() must be a function that returns a gemworks.train Recipe.")
    return made


def assemble(recipe: Recipe) -> Run:
    """Return the run of a recipe. Raises ConfigError for what it names and is not there or does not fit."""
    if not recipe.data:
        raise ConfigError("a recipe needs data: a packed store or a mixture. Add data=PATH (gemworks data pack).")
    source: Source = PackedSource.open(recipe.data, batch_rows=recipe.rows, length=recipe.tokens, seed=recipe.seed)
    frozen = None
    if isinstance(recipe.method, FromStore):
        source = TaughtSource(source, TeacherStore(Path(_named(recipe, "a store of a teacher's draws"))))
    elif isinstance(recipe.method, Distill | OnPolicy):
        frozen = _teacher(recipe)
    initial: Callable[[], Mapping[str, Any]] | None = None
    base = None
    if recipe.adapter is not None:
        base = stored_base(recipe)
    elif recipe.start:
        initial = lambda: stored_params(recipe)  # noqa: E731
    return Run(recipe, source, initial=initial, frozen=frozen, base=base)


def stored_params(recipe: Recipe) -> dict[str, np.ndarray]:
    """Return the parameters of the model a recipe starts from, in fp32."""
    with open_checkpoint(hub.resolve(recipe.start).path) as checkpoint:
        return {name: np.asarray(checkpoint.read(name), np.float32) for name in checkpoint.entries}


def stored_base(recipe: Recipe) -> Base:
    """Return the base of a recipe with an adapter, from the model it starts from."""
    assert recipe.adapter is not None
    if not recipe.start:
        raise ConfigError("a recipe with an adapter needs the model it adapts. Add start=NAME.")
    with open_checkpoint(hub.resolve(recipe.start).path) as checkpoint:
        return read_base(checkpoint, recipe.adapter, dtype=recipe.dtype)


def _teacher(recipe: Recipe) -> Gemma3:
    """The teacher where its run wants it: with a mesh array by array, as no device may hold it whole."""
    layout = make_layout(recipe)
    with open_checkpoint(hub.resolve(_named(recipe, "a model to learn from")).path) as checkpoint:
        check_teacher(recipe.model, checkpoint.config)
        if layout is None:
            return load_model(checkpoint, dtype=recipe.dtype)

        def on_host(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return np.asarray(checkpoint.read(name)).astype(recipe.dtype if len(shape) == 2 else np.float32)

        return place_model(build(checkpoint.config, on_host), layout)


def _named(recipe: Recipe, what: str) -> str:
    if not recipe.teacher:
        raise ConfigError(f"a recipe of the method {type(recipe.method).__name__} needs {what}. Add teacher=NAME.")
    return recipe.teacher


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gemworks_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in it look themselves up there
    spec.loader.exec_module(module)
    return module
