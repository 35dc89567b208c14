"""What a step needs on each device, before anything is allocated: the plan that `gemworks train --dry-run` prints."""

from typing import NamedTuple

from gemworks.model.config import TextConfig
from gemworks.ops.train.head import WORDS_AT_ONCE, num_parts
from gemworks.parallel.plan import ShardPlan
from gemworks.train.loss import NextToken
from gemworks.train.recipe import Recipe


class MemoryPlan(NamedTuple):
    """Bytes on the fullest device."""

    params: int  # fp32
    optimizer: int
    ema: int
    gradients: int  # fp32
    updates: int  # what the optimizer adds, fp32
    gathered: int  # all matrices in the compute dtype, divided over tensor only
    whole_gradients: int  # before they are divided: the table's (words' in fp32 and rounded, the head's), every layer's
    layer_inputs: int  # what is kept of each layer for the gradient
    layer: int  # inside the layer that is computed again
    head: int  # logits of a part of the words or tokens, and their gradient

    @property
    def total(self) -> int:
        """All of it at once, which is what the backward pass of the last layer needs, about."""
        return sum(self)


def plan_memory(recipe: Recipe, plan: ShardPlan) -> MemoryPlan:
    """Return the bytes by arithmetic; fitted to what XLA plans for a CPU (tests/unit/train/test_sharding.py).

    With 1, 6 and 26 layers of 1B on fsdp=8 the plan is 7 and 9 % above and 1 % below (3.98, 5.23, 11.60 GB a device).
    There every layer's gathered weights and undivided gradients seem to live until the end of the step; what schedules
    for memory needs less.
    """
    config, mesh = recipe.model, recipe.execution.mesh
    tokens = recipe.rows // recipe.accumulate * recipe.tokens // (mesh.rows * mesh.seq)
    width = 2 if recipe.dtype == "bfloat16" else 4
    moments = 2 if recipe.optimizer.name == "adamw" else 1  # Muon has one moment for matrices; table and gains two
    stored = plan.bytes_per_device(4)
    table = config.vocab_size * config.model_dim // mesh.tensor
    layers = len(config.layers) * sum(rows * cols for rows, cols in _layer_shapes(config)) // mesh.tensor
    words_at_once = getattr(recipe.method, "words_at_once", WORDS_AT_ONCE)
    logits = tokens * (config.vocab_size // num_parts(config.vocab_size, words_at_once) // mesh.tensor)
    if mesh.size == 1 and isinstance(recipe.method, NextToken):
        logits = min(tokens * config.vocab_size, recipe.method.logits_at_once)
    return MemoryPlan(
        params=stored,
        optimizer=moments * stored,
        ema=stored if recipe.ema else 0,
        gradients=stored * (2 if recipe.accumulate > 1 else 1),
        updates=stored,
        gathered=width * (table + 2 * layers),  # layers: for the forward pass, and again for the backward one
        whole_gradients=8 * table + (4 * layers if mesh.fsdp * mesh.seq > 1 else 0),  # 8: bf16 4 + 2 + 2, fp32 4 + 4
        layer_inputs=len(config.layers) * tokens * config.model_dim * 4,
        layer=tokens * _layer_width(config, recipe.tokens) * 4 // mesh.tensor,
        head=2 * logits * 4,
    )


def _layer_shapes(config: TextConfig) -> list[tuple[int, int]]:
    D, F = config.model_dim, config.ffw_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return [(q, D), (kv, D), (kv, D), (D, q), (F, D), (F, D), (D, F)]


def _layer_width(config: TextConfig, tokens: int) -> int:
    """fp32 numbers a token needs while a layer is differentiated: its widest branches and attention's scores."""
    window = max((spec.window or 0) for spec in config.layers)
    keys = tokens if any(spec.window is None for spec in config.layers) else min(tokens, 2 * window)
    return 4 * config.ffw_dim + 2 * config.num_heads * min(keys, 2 * max(window, 512))
