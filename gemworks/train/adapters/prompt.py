"""Soft prompts: trained vectors in the place of the first tokens of every text.

    ids of a text    V, V + 1, ... V + P - 1, <bos>, ...          V words of the table

An id from V on is a row of the prompt instead of the table's, as the first layer takes it: nothing scales or rounds it.
So packing, positions and masks are those of any text that begins with these ids.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Gemma3
from gemworks.model.layers import Embedding
from gemworks.ops import select
from gemworks.ops.kv import Array
from gemworks.train.adapters.kinds import Adapter, PromptTuning

# P soft tokens, D model width

PROMPT = "prompt.weight"


class Prompted(Embedding):
    """The token table with the prompt's rows after its own."""

    prompt_PD: jax.Array

    def __call__(self, ids_T: Array) -> jax.Array:
        """Return x_TD in fp32, of words and soft tokens."""
        at_T = jnp.asarray(ids_T) - self.weight.shape[0]
        words_TD = super().__call__(jnp.where(at_T < 0, ids_T, 0))
        return jnp.where((at_T >= 0)[..., None], self.prompt_PD[jnp.maximum(at_T, 0)], words_TD)


def prompt_ids(adapter: Adapter | None, config: TextConfig) -> tuple[int, ...]:
    """Return the ids that every text of a run must begin with, before <bos>; none but with prompt tuning."""
    if not isinstance(adapter, PromptTuning):
        return ()
    return tuple(range(config.vocab_size, config.vocab_size + adapter.tokens))


def new_prompt(adapter: PromptTuning, model: Gemma3, seed: int) -> dict[str, np.ndarray]:
    """Return the vectors a run begins with."""
    rng = np.random.default_rng([seed])
    P, D = adapter.tokens, model.config.model_dim
    if adapter.init == "random" and not adapter.text_ids:
        return {PROMPT: rng.standard_normal((P, D), np.float32)}
    ids = np.resize(adapter.text_ids, P) if adapter.text_ids else rng.integers(0, model.config.vocab_size, P)
    with select.force("*", "train"):
        return {PROMPT: np.asarray(model.embed(ids.astype(np.int32)), np.float32)}


def with_prompt(model: Gemma3, params: Mapping[str, jax.Array]) -> Gemma3:
    """Return the model whose embedding knows the soft tokens."""
    embed: Any = Prompted(model.embed.weight, params[PROMPT])
    return eqx.tree_at(lambda model: model.embed, model, embed)
