"""Direct preference optimization: log-probabilities by segment, the reference computed once, the loss by hand."""

import jax
import numpy as np
import pytest
from chat_model import chat_config, lessons, letters_tokenizer
from small_models import random_model

from gemworks.data.chat_rendering import render
from gemworks.data.chat_rows import PairSource, joined
from gemworks.errors import ConfigError
from gemworks.model.gemma3 import full_batch
from gemworks.train.dpo import DPO, reference_log_probs
from gemworks.train.loss import Call

CONFIG = chat_config()


@pytest.fixture(scope="module")
def texts():
    tokenizer = letters_tokenizer()
    rendered = []
    for i, one in enumerate(lessons(5)):
        question, answer = one["messages"]
        for said in (answer, answer | {"content": "n" * (i + 1)}):
            rendered.append((render(tokenizer, [question, said]), ("p.jsonl", i + 1)))
    return joined(rendered)


def source_of(texts, **more) -> PairSource:
    return PairSource(texts, length=80, batch_rows=2, seed=0, vocab_size=336, tokenizer="t", **more)


@jax.jit
def all_logits(model, ids_T):
    h_TD, _ = model(full_batch(ids_T, CONFIG))
    return model.logits(h_TD)


def log_prob(model, texts, number) -> float:
    """ln p of what is learned of one text, alone in a forward pass, by numpy's softmax."""
    here = slice(int(texts.starts[number]), int(texts.starts[number + 1]))
    ids, learned = texts.ids_N[here], texts.learned_N[here]
    logits = np.asarray(all_logits(model, np.pad(ids, (0, 64 - len(ids)))), np.float64)[: len(ids) - 1]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(log_p[np.arange(len(ids) - 1), ids[1:]][learned[1:]].sum())


@pytest.fixture(scope="module")
def reference(texts):
    return reference_log_probs(random_model(CONFIG, 3), source_of(texts), rows_at_once=2)


def test_reference_is_each_answer_alone(texts, reference):
    model = random_model(CONFIG, 3)
    wanted = [[log_prob(model, texts, 2 * i), log_prob(model, texts, 2 * i + 1)] for i in range(5)]
    np.testing.assert_allclose(reference, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_papers(texts, reference, smoothing):
    source, policy = source_of(texts, reference=reference), random_model(CONFIG, 4)
    method = DPO(beta=0.3, label_smoothing=smoothing)
    computed = jax.jit(lambda policy, rows: method(policy, rows, Call(jax.random.key(0))))
    total, weight, accuracy = 0.0, 0.0, 0.0
    for row in range(source.num_rows):
        terms = computed(policy, source.rows([row]))
        total, weight = total + float(terms.total), weight + float(terms.weight)
        accuracy += float(terms.more["accuracy"])
    ours = np.array([[log_prob(policy, texts, 2 * i), log_prob(policy, texts, 2 * i + 1)] for i in range(5)])
    margin = 0.3 * ((ours - reference)[:, 0] - (ours - reference)[:, 1])
    wanted = (1 - smoothing) * np.log1p(np.exp(-margin)) + smoothing * np.log1p(np.exp(margin))
    assert weight == 5
    assert total == pytest.approx(wanted.sum(), rel=1e-4)
    assert accuracy == (margin > 0).sum()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="beta of DPO must be greater than 0, got 0"):
        DPO(beta=0)
    with pytest.raises(ConfigError, match=r"label_smoothing must be at least 0 and less than 0\.5, got 0\.5"):
        DPO(label_smoothing=0.5)
