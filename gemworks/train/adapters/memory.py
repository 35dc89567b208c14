"""What a step with an adapter needs, before anything is allocated: the plan that is printed before a run."""

from typing import NamedTuple

from gemworks.errors import ConfigError
from gemworks.ops.train.head import WORDS_AT_ONCE, num_parts
from gemworks.ops.train.stored import AT_ONCE
from gemworks.ops.weight import quant_bytes
from gemworks.train.adapters.kinds import LoRA, base_plan
from gemworks.train.forward import parameter_shapes
from gemworks.train.recipe import Recipe
from gemworks.train.trained import trained_shapes

# fp32 numbers a token, in feed-forward widths, that a layer adds to XLA's plan although it is computed again: fitted.
_LAYER_WIDTH = 8.75


class AdapterMemory(NamedTuple):
    """Bytes on the device."""

    base: int  # frozen, as it is held
    trained: int  # fp32
    optimizer: int
    ema: int
    gradients: int  # fp32, and the updates
    part: int  # of a quantized matrix, as floats
    layer_inputs: int  # what is kept of each layer for the gradient
    layers: int  # what XLA keeps of every layer while it is differentiated
    head: int  # logits of a part of the vocabulary, and their gradient

    @property
    def total(self) -> int:
        """All of it at once, about what the backward pass of the last layer needs."""
        return sum(self)


def plan_adapter_memory(recipe: Recipe) -> AdapterMemory:
    """Return the bytes by arithmetic, fitted to what XLA plans for a CPU: with 1 and 3 layers of 1B, 1 x 512 tokens,
    2 % below for LoRA (0.85 and 1.24 GB) and 2 and 3 % above on int4 (0.49 and 0.79 GB).
    """
    if recipe.adapter is None:
        raise ConfigError("a recipe without an adapter trains every parameter: train.memory.plan_memory plans it.")
    config = recipe.model
    tokens = recipe.rows // recipe.accumulate * recipe.tokens
    trained = 4 * sum(_size(shape) for shape in trained_shapes(recipe).values())
    words = getattr(recipe.method, "words_at_once", WORDS_AT_ONCE)
    part_words = config.vocab_size // num_parts(config.vocab_size, words)
    width = 2 if recipe.dtype == "bfloat16" else 4
    return AdapterMemory(
        base=base_bytes(recipe),
        trained=trained,
        optimizer=2 * trained,
        ema=trained if recipe.ema else 0,
        gradients=trained * (3 if recipe.accumulate > 1 else 2),
        part=AT_ONCE * (4 + width) if base_plan(recipe.adapter) is not None else 0,
        layer_inputs=(len(config.layers) + 1) * tokens * config.model_dim * 4,
        layers=int(len(config.layers) * tokens * _LAYER_WIDTH * config.ffw_dim * 4),
        head=2 * tokens * part_words * 4,
    )


def base_bytes(recipe: Recipe) -> int:
    """Return the bytes of the frozen base; a base that is stored quantized is counted in the recipe's dtype."""
    assert recipe.adapter is not None
    plan, width = base_plan(recipe.adapter), 2 if recipe.dtype == "bfloat16" else 4
    total = 0
    for name, shape in parameter_shapes(recipe.model).items():
        format = None if plan is None else plan.format_of(name, shape)
        if len(shape) == 1:
            total += 4 * shape[0]
        else:
            total += width * _size(shape) if format is None else quant_bytes(format, *shape)
    if isinstance(recipe.adapter, LoRA) and recipe.adapter.dora:
        total += 4 * sum(s[0] for name, s in trained_shapes(recipe).items() if name.endswith(".magnitude"))
    return total


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 1 else shape[0] * shape[1]
