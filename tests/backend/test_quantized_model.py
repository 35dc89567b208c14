"""A trained model on the kernels against the same dequantized weights in fp32 on ops/xla."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks.model.gemma3 import full_batch
from gemworks.ops import select
from gemworks.quant.plan import QuantPlan
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights import hub
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import load_model
from recipes.tiny_standin.corpus import held_texts

if "cpu" not in select.available():
    pytest.skip("no CPU kernels here: see gemworks doctor", allow_module_level=True)

POSITIONS = 2000


def packed_texts(tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Stories of the embedded model's kind, not trained on, one after the other: (ids, segments)."""
    ids, segments = [], []
    for i, sample in enumerate(held_texts(tokenizer, seed=7, number=400)):
        ids += list(sample.ids)
        segments += [i] * len(sample.ids)
        if len(ids) >= POSITIONS:
            return np.array(ids, np.int32), np.array(segments, np.int32)
    raise AssertionError("400 stories are too few")


@pytest.mark.parametrize(("quant", "least_agreement"), [("int4-b32", 0.98), ("int8-b32", 0.98), ("int8", 0.98)])
def test_logits_and_greedy_tokens_agree_with_fp32(quant, least_agreement):
    """Relative error at most 1.5 %, and the same best token at 98 % of 2,000 positions (docs/numerics.md)."""
    with open_checkpoint(hub.TINY) as checkpoint:
        model = load_model(checkpoint, quant=QuantPlan.parse(quant, "int8"))
    ids, segments = packed_texts(Tokenizer.load(hub.TINY))

    def logits() -> np.ndarray:
        h_TD, _ = model(full_batch(jnp.asarray(ids), model.config, jnp.asarray(segments)))
        return np.asarray(model.logits(h_TD))

    ours = logits()
    with select.force("*", "xla"), jax.default_matmul_precision("highest"):
        exact = logits()
    assert 1e-4 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.015  # below: no kernel was used
    assert (ours.argmax(-1) == exact.argmax(-1)).mean() >= least_agreement
