"""Keys and values in int8: what rounding them costs, on every backend, and what of a model's answers it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import ops
from gemworks.engine.runner import Row, Runner
from gemworks.ops import select
from gemworks.ops.kv import PagePlan, new_page_kv, new_ring_kv
from gemworks.ops.xla.attention import quantize
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights import hub
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import load_model
from recipes.tiny_standin.corpus import held_texts

POSITIONS = 2000


@pytest.fixture(params=select.available(), autouse=True)
def backend(request):
    with select.force("*", request.param):
        yield request.param


def test_a_head_is_rounded_to_half_a_code():
    """scale = max|x| / 127, |x - code * scale| <= scale / 2; zeros and numbers under 1e-30 become zeros."""
    x = np.random.default_rng(0).normal(0, 1, (5, 3, 64)).astype(np.float32)
    x[1, 0] = 0
    x[2, 0] *= 1e-33
    x[3, 0, 7] = 500
    codes, scales = map(np.asarray, quantize(jnp.asarray(x)))
    error = np.abs(codes * scales[..., None] - x)
    assert codes.dtype == np.int8 and (error <= scales[..., None] * 0.5001 + 1e-30).all()
    assert not codes[1, 0].any() and not codes[2, 0].any() and scales[1, 0] == scales[2, 0] == 0
    assert codes[3, 0, 7] == 127 and (np.abs(codes).max(axis=-1)[scales > 0] == 127).all()


def test_pools_of_int8_take_half_the_bytes_and_a_scale_a_head():
    ring, pages = new_ring_kv(2, 8, 3, 64, "int8"), new_page_kv(5, 16, 3, 64, jnp.int8)
    assert sum(x.nbytes for x in jax.tree.leaves(ring)) == 2 * (2 * 8 * 3) * (64 + 4)
    assert sum(x.nbytes for x in jax.tree.leaves(pages)) == 2 * (5 * 16 * 3) * (64 + 4)


def test_attention_over_int8_pages_is_near_fp32():
    """300 keys of normal numbers: 0.77 % of the output's size measured (docs/numerics.md)."""
    T, B, K, H = 300, 16, 2, 64
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(0, 1, (T, n, H)), jnp.float32) for n in (4, K, K))
    plan = PagePlan(
        jnp.zeros(1, jnp.int32), jnp.full(1, T, jnp.int32), jnp.arange(1, -(-T // B) + 1, dtype=jnp.int32)[None]
    )
    exact, rounded = (
        np.asarray(ops.attention(q, k, v, plan, new_page_kv(32, B, K, H, dtype), scale=H**-0.5)[0])
        for dtype in ("float32", "int8")
    )
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.01


def test_a_trained_model_answers_as_with_fp32_keys_and_values():
    """tiny, 2,000 positions of text it was not trained on, chunk by chunk: the same best token at 99 %."""
    with open_checkpoint(hub.TINY) as checkpoint:
        model = load_model(checkpoint)
    tokenizer = Tokenizer.load(hub.TINY)
    texts, positions = [], 0
    for sample in held_texts(tokenizer, seed=7, number=400):
        texts.append(list(sample.ids))
        positions += len(sample.ids)
        if positions >= POSITIONS:
            break

    def logits(kv_dtype: str) -> np.ndarray:
        """Every text through chunks of 64, so that most keys are read back from the cache."""
        runner = Runner(model, context=512, kv_dtype=kv_dtype)
        found = []
        for ids in texts:
            sequence = runner.new_sequence()
            for at in range(0, len(ids), 64):
                part = ids[at : at + 64]
                h_SD = runner.forward([Row(sequence, part)], every_token=True)
                found.append(np.asarray(model.logits(h_SD))[: len(part)])
            sequence.free()
        return np.concatenate(found)

    exact, rounded = logits("float32"), logits("int8")
    assert 1e-5 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.01
    assert (rounded.argmax(-1) == exact.argmax(-1)).mean() >= 0.99
