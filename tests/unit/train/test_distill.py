"""Targets of sampled teachers: what they converge to, and that the student's loss is over its whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nano_runs import RandomRows, nano_recipe

from gemworks.errors import ConfigError
from gemworks.model.config import GEMMA3_1B, GEMMA3_4B
from gemworks.train.distill import Distill, FromStore, TaughtRows, check_teacher
from gemworks.train.forward import model_of
from gemworks.train.loss import Call
from gemworks.train.state import random_params
from gemworks.train.targets import SCHEMES, draw, sampled_targets, targets_of


def zipf(words: int, power: float) -> jax.Array:
    return -power * jnp.log(jnp.arange(1, words + 1, dtype=jnp.float32))


def test_draws_come_as_often_as_they_are_likely():
    logits = zipf(50, 1.2)
    ids = draw(jax.random.key(0), jnp.broadcast_to(logits, (200, 50)), 256)
    assert (np.diff(np.asarray(ids), axis=1) >= 0).all()
    share, p = np.bincount(np.asarray(ids).ravel(), minlength=50) / ids.size, np.asarray(jax.nn.softmax(logits))
    assert np.abs(share - p).max() < 5 * (p / ids.size).max() ** 0.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_targets_by_hand(scheme):
    """Three draws, word 4 twice: by the formulas, in plain Python."""
    p = {2: 0.5, 4: 0.25}
    weights = {
        "ht": {i: q / (1 - (1 - q) ** 3) for i, q in p.items()},
        "counts": {2: 1.0, 4: 2.0},
        "gemma3": p,
    }[scheme]
    got = targets_of(jnp.array([2, 4, 4]), jnp.log(jnp.array([0.5, 0.25, 0.25])), scheme)
    total = sum(weights.values())
    np.testing.assert_allclose(got, [weights[2] / total, weights[4] / total, 0], rtol=1e-6)


def test_ht_of_a_very_rare_word_does_not_cancel():
    got = targets_of(jnp.array([1, 2]), jnp.log(jnp.array([1e-9, 0.5])), "ht")
    chance = -np.expm1(2 * np.log1p(-1e-9))
    wanted = np.array([1e-9 / chance, 0.5 / 0.75])
    np.testing.assert_allclose(got, wanted / wanted.sum(), rtol=1e-5)


def divergence_after_fit(scheme: str) -> float:
    """KL(p, student) of a free table that is fitted to drawn targets of a fixed teacher, averaged over the last steps.

    256 draws of 4,096 words with p ~ 1 / rank^1.2: most words are rarer than 1 / 256.
    """
    words, tokens = 4096, 64
    logits = zipf(words, 1.2)
    p = jax.nn.softmax(logits)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))

    def loss(table, key):
        ids, targets = sampled_targets(key, jnp.broadcast_to(logits, (tokens, words)), scheme, 256)
        return jax.nn.logsumexp(table) - (targets * table[ids]).sum() / tokens

    @jax.jit
    def fit(key):
        def step(carry, key):
            table, state = carry
            updates, state = optimizer.update(jax.grad(loss)(table, key), state)
            return (optax.apply_updates(table, updates), state), None

        table = jnp.zeros(words)
        (table, _), _ = jax.lax.scan(step, (table, optimizer.init(table)), jax.random.split(key, 600))
        return (p * (jnp.log(p) - jax.nn.log_softmax(table))).sum()

    return float(fit(jax.random.key(1)))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ht_and_counts_converge_to_the_teacher_and_the_literal_wording_does_not():
    found = {scheme: divergence_after_fit(scheme) for scheme in SCHEMES}
    assert found["ht"] <= 1e-3 and found["counts"] <= 2e-3, found
    assert found["gemma3"] > 0.02, found


@pytest.fixture(scope="module")
def nano():
    recipe = nano_recipe()
    models = [
        model_of({k: jnp.asarray(v) for k, v in random_params(recipe.model, seed).items()}, recipe.model)
        for seed in (0, 1)
    ]
    return recipe, *models


@pytest.mark.exhaustive
def test_online_and_stored_draws_give_one_loss_that_is_over_the_whole_vocabulary(nano):
    from gemworks.train.distill import teach
    from gemworks.train.forward import head_rows, hidden

    recipe, student, teacher = nano
    rows, method = RandomRows(recipe).batch(0), Distill(draws=32, alpha=0.75, words_at_once=40)
    call = Call(jax.random.key(3), teacher)

    @jax.jit
    def all_of_it(student, teacher):
        at = call._replace(frozen=teacher)
        drawn, taught = teach(method, teacher, rows, at)
        stored = FromStore(alpha=0.75)(student, TaughtRows(*rows, drawn, taught), at)
        logits = hidden(student, rows) @ head_rows(student).T
        return method(student, rows, at), stored, drawn, taught, jax.nn.log_softmax(logits)

    online, stored, drawn, taught, log_q = all_of_it(student, teacher)
    np.testing.assert_allclose(np.asarray(taught).sum(axis=-1), 1, rtol=1e-5)
    soft = -(np.asarray(taught) * np.take_along_axis(np.asarray(log_q), np.asarray(drawn), -1)).sum(-1)
    hard = -np.take_along_axis(np.asarray(log_q), rows.targets_BT[..., None], -1)[..., 0]
    expected = ((0.75 * soft + 0.25 * hard) * rows.loss_mask_BT).sum()
    assert float(online.total) == pytest.approx(expected, rel=1e-4)
    assert float(stored.total) == pytest.approx(float(online.total), rel=1e-6)


def test_teacher_of_other_words_is_refused():
    with pytest.raises(ConfigError, match="must have one vocabulary, got 262,208 and 262,144 words"):
        check_teacher(GEMMA3_1B, GEMMA3_4B)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match='one of ht, counts, gemma3, got "topk"'):
        Distill(scheme="topk")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="draws >= 1"):
        Distill(draws=0)
