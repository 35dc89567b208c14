"""Loss and the gradient of every parameter against torch autograd on transformers' Gemma 3, in fp32.

Rows hold several texts with unequal masks; theirs are computed text by text, so packing, positions that restart,
windows in blocks, the head in parts and recomputed layers are all held to the plain thing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import Shape, configs, randomize
from transformers import Gemma3ForCausalLM

from gemworks.ops.train import attention as train_attention
from gemworks.train.forward import Rows, model_of, parameter_shapes
from gemworks.train.loss import Call, NextToken
from gemworks.weights.names import hf_from_ours

VOCAB = 384

# heads, kv heads, head width, model width, layers, window, factor of global layers, query scalar
FAMILY = {
    "270m": Shape(4, 1, 32, 80, 7, 8, 1.0, 32),
    "4b": Shape(8, 4, 16, 64, 6, 7, 8.0, 16),
    "untied": Shape(4, 2, 16, 48, 6, 5, 8.0, 16, is_tied=False),
    "27b, its own scale": Shape(8, 4, 8, 48, 8, 12, 8.0, 168),
    "window 1": Shape(2, 2, 16, 32, 6, 1, 1.0, 16),
    "window wider than a row": Shape(2, 1, 16, 32, 6, 100, 1.0, 16),
}


def some_rows(texts: list[list[int]], T: int, seed: int) -> tuple[Rows, list[list[tuple[np.ndarray, np.ndarray]]]]:
    """Rows of texts of the given lengths, the rest filled; and of each text its ids and the weights of its targets."""
    rng = np.random.default_rng(seed)
    shape = (len(texts), T)
    rows = Rows(*(np.zeros(shape, dtype) for dtype in (np.int32, np.int32, np.float32, np.int32, np.int32)))
    parts = []
    for b, lengths in enumerate(texts):
        at = 0
        rows.position_BT[b] = np.arange(T)
        for number, n in enumerate(lengths, 1):
            ids, here = rng.integers(3, VOCAB, n).astype(np.int32), slice(at, at + n)
            weights = rng.integers(0, 2, n).astype(np.float32) * (1 if number % 2 else 0.5)
            weights[-1] = 0
            rows.ids_BT[b, here], rows.targets_BT[b, at : at + n - 1] = ids, ids[1:]
            rows.loss_mask_BT[b, here], rows.segment_BT[b, here] = weights, number
            rows.position_BT[b, here] = np.arange(n)
            parts.append((ids, weights))
            at += n
        rows.position_BT[b, at:] = np.arange(T - at)
    return rows, parts


def their_gradients(model: Gemma3ForCausalLM, parts) -> float:
    """Leave the gradient in the model's parameters and return the loss."""
    total = sum(float(weights.sum()) for _, weights in parts)
    loss = torch.zeros(())
    for ids, weights in parts:
        logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:].astype(np.int64)), reduction="none")
        loss = loss + (nll * torch.tensor(weights[:-1])).sum() / total
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize("case", FAMILY)
def test_gradient_of_every_parameter(case, monkeypatch):
    monkeypatch.setattr(train_attention, "QUERIES", 16)  # so that global layers take three turns
    T = 48
    theirs, config = configs(FAMILY[case], VOCAB)
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(theirs).eval()
    randomize(model, theirs.hidden_size)
    rows, parts = some_rows([[17, 9, 20], [T]], T, seed=1)
    expected_loss = their_gradients(model, parts)
    theirs_by_name = dict(model.named_parameters())
    shapes = parameter_shapes(config)
    params = {name: jnp.asarray(theirs_by_name[hf_from_ours(name)].detach().numpy()) for name in shapes}
    method = NextToken(logits_at_once=VOCAB * 20)

    def loss(params):
        terms = method(model_of(params, config), rows, Call(jax.random.key(0)))
        return terms.total / terms.weight

    got_loss, got = jax.jit(jax.value_and_grad(loss))(params)
    assert got_loss == pytest.approx(expected_loss, rel=1e-5)
    for name in shapes:
        expected = theirs_by_name[hf_from_ours(name)].grad.numpy()
        error, size = (np.linalg.norm(x) for x in (np.asarray(got[name]) - expected, expected))
        if case == "window 1" and size == 0:  # a local query's one key has weight 1 whatever q and k are
            assert error == 0, name
            continue
        assert size > 1e-4, f"{name}: too small a gradient to tell anything"
        assert error <= 1e-4 * size, f"{name}: {error / size:.1e}"
