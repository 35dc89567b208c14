"""Direct preference optimization against torch: values and gradients of the sigmoid loss as TRL's trainer writes it.

    logratios = (chosen - rejected) - (ref_chosen - ref_rejected)
    losses = -logsigmoid(beta logratios) (1 - e) - logsigmoid(-beta logratios) e

Theirs computes each text alone with transformers, from whole logits; where trl is installed, its own function too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from chat_model import lessons, letters_tokenizer
from hf_models import Shape, configs, randomize
from transformers import Gemma3ForCausalLM

from gemworks.data.chat_rendering import render
from gemworks.data.chat_rows import PairSource, joined
from gemworks.train.dpo import DPO, reference_log_probs
from gemworks.train.forward import model_of, parameter_shapes
from gemworks.train.loss import Call
from gemworks.weights.names import hf_from_ours

VOCAB, BETA = 336, 0.2


@pytest.fixture(scope="module")
def texts():
    tokenizer, rendered = letters_tokenizer(), []
    for i, one in enumerate(lessons(6)):
        question, answer = one["messages"]
        for said in (answer, answer | {"content": "no" * (i + 1)}):
            rendered.append((render(tokenizer, [question, said]), ("p.jsonl", i)))
    return joined(rendered)


def their_log_probs(model, texts) -> torch.Tensor:
    """[pairs, 2], differentiable."""
    sums = []
    for start, end in zip(texts.starts, texts.starts[1:], strict=False):
        ids = torch.tensor(texts.ids_N[start:end].astype(np.int64))
        log_p = torch.log_softmax(model(ids[None]).logits[0, :-1], dim=-1)
        chosen = log_p.gather(1, ids[1:, None])[:, 0]
        sums.append((chosen * torch.tensor(texts.learned_N[start + 1 : end])).sum())
    return torch.stack(sums).reshape(-1, 2)


def random_theirs(theirs, seed):
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(theirs).eval()
    randomize(model, theirs.hidden_size)
    return model


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_of_every_parameter(texts, smoothing):
    theirs, config = configs(Shape(2, 1, 16, 48, 7, 16, 1.0, 16), VOCAB)
    policy, reference = random_theirs(theirs, 0), random_theirs(theirs, 1)
    ours_ln_p = their_log_probs(policy, texts)
    with torch.no_grad():
        reference_ln_p = their_log_probs(reference, texts)
    logratios = (ours_ln_p[:, 0] - ours_ln_p[:, 1]) - (reference_ln_p[:, 0] - reference_ln_p[:, 1])
    losses = -torch.nn.functional.logsigmoid(BETA * logratios) * (1 - smoothing)
    losses = losses - torch.nn.functional.logsigmoid(-BETA * logratios) * smoothing
    losses.mean().backward()

    def params_of(model):
        named = dict(model.named_parameters())
        return {name: jnp.asarray(named[hf_from_ours(name)].detach().numpy()) for name in parameter_shapes(config)}

    about = {"length": 128, "batch_rows": 1, "seed": 0, "vocab_size": VOCAB, "tokenizer": "t"}
    source = PairSource(texts, **about)
    frozen = model_of(params_of(reference), config)
    source.reference = reference_log_probs(frozen, source, rows_at_once=2)
    np.testing.assert_allclose(source.reference, reference_ln_p.numpy(), rtol=1e-5, atol=1e-4)
    rows = source.rows(range(source.num_rows))
    method = DPO(beta=BETA, label_smoothing=smoothing, words_at_once=100)

    def loss(params):
        terms = method(model_of(params, config), rows, Call(jax.random.key(0)))
        return terms.total / terms.weight

    value, grads = jax.jit(jax.value_and_grad(loss))(params_of(policy))
    assert value == pytest.approx(float(losses.mean().detach()), rel=1e-4)
    named = dict(policy.named_parameters())
    for name, got in grads.items():
        wanted = named[hf_from_ours(name)].grad.numpy()
        error, size = np.linalg.norm(np.asarray(got) - wanted), np.linalg.norm(wanted)
        assert error <= 1e-3 * size + 1e-6, f"{name}: {error / size:.1e}"
