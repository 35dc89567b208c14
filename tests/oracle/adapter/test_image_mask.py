"""Image spans against transformers' Gemma3ForConditionalGeneration, random embeddings in place of the tower's, fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from chunked_model import hidden_by_chunks, last_seen, soft_tokens

from gemworks.model.gemma3 import full_batch

# spans (first, one after the last) and text length; chunks that end outside of all spans
CASES = {
    "one in the middle": ([(5, 17)], 40, [[40], [5, 35], [17, 1, 22], [3, 20, 17], [30, 10]]),
    "first": ([(0, 9)], 24, [[24], [9, 15], [12, 12]]),
    "last": ([(12, 30)], 30, [[30], [12, 18], [4, 26]]),
    "several": ([(3, 13), (15, 25), (31, 41)], 52, [[52], [14, 14, 24], [3, 11, 17, 21], [27, 25]]),
}
SHAPES = ("1b", "4b", "4b, short window", "12b", "27b", "window 1")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_logits_with_images(case, shape, random_pair):
    """Whole, and by chunks over rings and pages, where chunks may end; some windows are smaller than the span."""
    spans, T, ways = CASES[case]
    theirs, ours, config = random_pair(shape, with_images=True)
    rng = np.random.default_rng(1)
    ids_T = rng.integers(3, 290, T)
    count = sum(end - start for start, end in spans)
    rows_SD = rng.normal(0, 1.5, (count, config.model_dim)).astype(np.float32)
    expected = their_logits(theirs, ids_T, spans, rows_SD)
    assert np.abs(expected).max() > 0.5, "logits too small to tell anything"
    causal = their_logits(theirs, ids_T, spans, rows_SD, bidirectional=False)
    assert np.abs(expected - causal).max() > 0.01, "the mask changes nothing here"

    for chunks in ways:
        # One shape of chunk and of rows for every case: one program a model.
        rows = np.pad(rows_SD, ((0, 40 - count), (0, 0)))
        h_TD = hidden_by_chunks(ours, ids_T, chunks, spans=spans, rows_SD=rows, columns=64, page_size=16, pages=5)
        assert np.abs(np.asarray(ours.logits(jnp.asarray(h_TD))) - expected).max() <= 2e-4, chunks


def test_logits_with_images_in_one_pass(random_pair):
    """Without a cache, as training and scoring compute."""
    spans, T, _ = CASES["several"]
    theirs, ours, config = random_pair("4b, short window", with_images=True)
    rng = np.random.default_rng(2)
    ids_T = rng.integers(3, 290, T)
    rows_SD = rng.normal(0, 1.5, (30, config.model_dim)).astype(np.float32)
    soft, see_T = soft_tokens(T, spans, rows_SD), jnp.asarray(last_seen(T, spans))
    batch = full_batch(jnp.asarray(ids_T, jnp.int32), config, see_T=see_T, soft=soft)
    got = np.asarray(jax.jit(lambda model, batch: model.logits(model(batch)[0]))(ours, batch))
    assert np.abs(got - their_logits(theirs, ids_T, spans, rows_SD)).max() <= 2e-4


def their_logits(model, ids_T, spans, rows_SD, *, bidirectional: bool = True) -> np.ndarray:
    types_T = torch.zeros(1, len(ids_T), dtype=torch.long)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(torch.tensor(ids_T)[None]).clone()
        at = np.concatenate([np.arange(*span) for span in spans])
        embeddings[0, at] = torch.tensor(rows_SD)
        if bidirectional:
            types_T[0, at] = 1
        return model(inputs_embeds=embeddings, token_type_ids=types_T).logits[0].numpy()
