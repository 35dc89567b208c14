"""What a recipe trains and the model it makes of it: all parameters, or an adapter's beside a frozen base."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.errors import ConfigError
from gemworks.model.gemma3 import Gemma3
from gemworks.train.adapters.base import Base
from gemworks.train.adapters.kinds import LoRA
from gemworks.train.adapters.lora import lora_shapes, new_lora, with_lora
from gemworks.train.adapters.prompt import PROMPT, new_prompt, with_prompt
from gemworks.train.forward import Params, model_of, parameter_shapes
from gemworks.train.recipe import Recipe

_DROPOUT = 0xD0  # folded into a micro-batch's key, whose own draws are the method's


class Frozen(NamedTuple):
    """What a step reads and does not train, where there is an adapter: its base, and what the method reads."""

    base: Base
    more: Any


def trained_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter that a recipe trains, by our names."""
    adapter = recipe.adapter
    if adapter is None:
        return parameter_shapes(recipe.model)
    if isinstance(adapter, LoRA):
        return lora_shapes(adapter, recipe.model)
    return {PROMPT: (adapter.tokens, recipe.model.model_dim)}


def trained_model(recipe: Recipe, params: Params, base: Base | None = None, key: jax.Array | None = None) -> Gemma3:
    """Return the model that computes with these parameters. `key`: of a micro-batch; None is without dropout."""
    adapter, dtype = recipe.adapter, jnp.dtype(recipe.dtype)
    if adapter is None:
        return model_of(params, recipe.model, dtype)
    assert base is not None, "a recipe with an adapter has a base"
    if isinstance(adapter, LoRA):
        dropout = None if key is None else jax.random.fold_in(key, _DROPOUT)
        return with_lora(base.model, adapter, params, base.squares, dtype=dtype, key=dropout)
    return with_prompt(base.model, params)


def check_base(recipe: Recipe, base: Base | None) -> None:
    """Raise ConfigError where an adapter's base is missing or of another shape, or there is one and no adapter."""
    if recipe.adapter is None:
        assert base is None, "a base without an adapter beside it"
    elif base is None:
        raise ConfigError("a recipe with an adapter needs the model it adapts. Add start=NAME.")
    elif base.model.config != recipe.model:
        raise ConfigError("the base of an adapter must be of the recipe's model, and it is of another shape.")


def new_params(recipe: Recipe, base: Base) -> Mapping[str, np.ndarray]:
    """Return what an adapter begins with."""
    if isinstance(recipe.adapter, LoRA):
        return new_lora(recipe.adapter, recipe.model, base.squares, recipe.seed)
    assert recipe.adapter is not None
    return new_prompt(recipe.adapter, base.model, recipe.seed)
