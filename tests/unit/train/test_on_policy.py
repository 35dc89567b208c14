"""On-policy distillation: whose texts are drawn, what the teacher's judgement is, and that it helps on own texts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nano_runs import RandomRows, nano_recipe
from small_models import random_arrays, small_config

from gemworks.errors import ConfigError
from gemworks.model.config import LayerSpec
from gemworks.model.gemma3 import Gemma3
from gemworks.train import on_policy
from gemworks.train.feed import put_batch
from gemworks.train.forward import Rows, head_rows, hidden, model_of
from gemworks.train.loop import Run, train
from gemworks.train.loss import Call
from gemworks.train.on_policy import DIVERGENCES, OnPolicy, answered, divergence, prompt_lengths
from gemworks.train.state import State, random_params
from gemworks.train.step import gradient

LOCAL, GLOBAL = LayerSpec(window=4, rope_base=1e4), LayerSpec(window=None, rope_base=1e6)
B, T, V = 4, 12, 24


def a_model(seed: int, dim: int = 16, *, layers: tuple[LayerSpec, ...] = (LOCAL, GLOBAL), spread=0.4) -> Gemma3:
    config = small_config(
        num_heads=1, num_kv_heads=1, head_dim=16, model_dim=dim, layers=layers, vocab_size=V, tied_head=False
    )
    return model_of({k: jnp.asarray(v) for k, v in random_arrays(config, seed, spread=spread).items()}, config)


def some_rows(rows: int = B, seed: int = 0) -> Rows:
    """One text a row, no end tokens in it; every target counts."""
    ids = np.random.default_rng(seed).integers(2, V, (rows, T + 1)).astype(np.int32)
    one = np.ones((rows, T), np.int32)
    position = np.broadcast_to(np.arange(T, dtype=np.int32), (rows, T))
    return Rows(ids[:, :-1], ids[:, 1:], one.astype(np.float32), one, position)


@pytest.fixture(scope="module")
def student() -> Gemma3:
    return a_model(0)


@pytest.fixture(scope="module")
def plain_student() -> Gemma3:
    """One layer, which compiles in half the time."""
    return a_model(0, layers=(GLOBAL,))


@pytest.fixture(scope="module")
def teacher() -> Gemma3:
    return a_model(1, 32, layers=(GLOBAL,))


def answers(settings: OnPolicy, model: Gemma3, rows: Rows, key: jax.Array) -> Rows:
    return jax.jit(lambda model, rows, key: answered(settings, model, rows, key))(model, rows, key)


@jax.jit
def whole_logits(model: Gemma3, rows: Rows) -> jax.Array:
    return hidden(model, rows, remat=False) @ head_rows(model).T


def logits_of(model: Gemma3, rows: Rows) -> np.ndarray:
    """By the trainer's forward pass, which has no cache."""
    return np.asarray(whole_logits(model, rows), np.float64)


def by_formula(kind: str, p: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    """The paper's formulas over probabilities, in float64."""

    def kl(a, b):
        return (a * np.log(a / b)).sum(axis=-1)

    mixed = beta * p + (1 - beta) * q
    return {"forward": kl(p, q), "reverse": kl(q, p), "jsd": beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)}[kind]


@pytest.fixture
def distributions() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(3).normal(0, 2, (2, 5, 40))
    p, q = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    return p, q


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergences_are_the_papers_formulas(kind, distributions):
    p, q = distributions
    got = divergence(kind, jnp.log(p), jnp.log(q), 0.3)
    np.testing.assert_allclose(got, by_formula(kind, p, q, 0.3), rtol=2e-5)
    np.testing.assert_allclose(divergence(kind, jnp.log(p), jnp.log(p), 0.3), 0, atol=1e-6)


def test_jsd_goes_to_both_directions_and_is_symmetric_in_the_middle(distributions):
    p, q = map(jnp.log, distributions)
    np.testing.assert_allclose(divergence("jsd", p, q, 1e-4) / 1e-4, divergence("forward", p, q), rtol=0.02)
    np.testing.assert_allclose(divergence("jsd", p, q, 1 - 1e-4) / 1e-4, divergence("reverse", p, q), rtol=0.02)
    np.testing.assert_allclose(divergence("jsd", p, q), divergence("jsd", q, p), rtol=1e-5)
    far = jnp.log(jnp.array([[1 - 1e-7, 1e-7], [1e-7, 1 - 1e-7]]))
    np.testing.assert_allclose(divergence("jsd", far[0], far[1]), np.log(2), rtol=1e-4)  # its bound


def test_a_cold_draw_is_what_the_trainers_own_forward_pass_finds_most_likely(student):
    """Two layers, window 4 of 12: the sampler's cache against the forward pass without one, at every position."""
    settings = OnPolicy(prompt=3, temperature=1e-5, end=())
    out = answers(settings, student, some_rows(), jax.random.key(0))
    counts = np.asarray(out.loss_mask_BT) > 0
    assert counts.sum() == B * (T - 2)
    np.testing.assert_array_equal(logits_of(student, out).argmax(-1)[counts], np.asarray(out.targets_BT)[counts])
    np.testing.assert_array_equal(out.ids_BT[:, :3], some_rows().ids_BT[:, :3])
    np.testing.assert_array_equal(out.ids_BT[:, 1:], out.targets_BT[:, :-1])


@pytest.mark.exhaustive
def test_draws_come_as_often_as_the_student_says(student):
    """2,048 draws of one place; chi-square with the words expected at least 5 times, at 1e-6."""
    rows = Rows(*(np.repeat(x[:1], 2048, axis=0) for x in some_rows()))
    settings = OnPolicy(prompt=T, temperature=1.5, end=())
    out = answers(settings, student, rows, jax.random.key(5))
    drawn = np.bincount(np.asarray(out.targets_BT)[:, -1], minlength=V)
    x = logits_of(student, Rows(*(x[:1] for x in rows)))[0, -1] / 1.5
    wanted = 2048 * np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    often = wanted >= 5
    assert often.sum() > 5
    chi2, freedom = ((drawn - wanted)[often] ** 2 / wanted[often]).sum(), often.sum() - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 10


def test_prompts_end_at_the_first_target_that_counts_and_with_their_text():
    rows = some_rows(3)
    rows.loss_mask_BT[1, :6] = 0  # a question of 7 tokens
    segment = np.array(rows.segment_BT)
    segment[2, 2:] = 2  # a first text of 2 tokens
    assert prompt_lengths(OnPolicy(prompt=4), rows._replace(segment_BT=segment)).tolist() == [4, 7, 2]


@pytest.mark.exhaustive
def test_an_answer_ends_with_its_end_token_which_counts(plain_student):
    """Every word ends an answer: one target a row. And a row of which nothing counts has none."""
    rows = some_rows()
    rows.loss_mask_BT[3] = 0
    out = answers(OnPolicy(prompt=4, end=tuple(range(V))), plain_student, rows, jax.random.key(0))
    wanted = np.zeros((B, T))
    wanted[:3, 3] = 1
    np.testing.assert_array_equal(out.loss_mask_BT, wanted)


def test_the_student_draws_and_not_the_teacher(student, teacher, monkeypatch):
    """Traced only. What answers is the model that is trained, without a gradient through it."""
    asked = []
    monkeypatch.setattr(on_policy, "answered", lambda _, model, rows, key: asked.append(model) or rows)
    jax.eval_shape(lambda m: OnPolicy()(m, some_rows(), Call(jax.random.key(0), teacher)), student)
    assert [model.config for model in asked] == [student.config] != [teacher.config]


def test_logits_of_whole_rows_are_never_made(plain_student, teacher):
    """Lowered only: [B, T, V] is in the program where the parts may be that large, and else not."""

    def program(logits_at_once: int) -> str:
        method = OnPolicy(on_policy=0.0, logits_at_once=logits_at_once)
        loss = jax.grad(lambda m: method(m, some_rows(), Call(jax.random.key(0), teacher)).total)
        return jax.jit(loss).lower(plain_student).as_text()

    assert f"{B}x{T}x{V}x" in program(B * T * V) and f"{B}x{T}x{V}x" not in program(B * V * 4)


@pytest.mark.exhaustive
def test_gradient_is_that_of_the_drawn_rows_and_not_of_the_draws(student, teacher):
    """Parts of one token change nothing; drawn inside or given from outside, the gradient is the same."""
    settings = OnPolicy(prompt=3, logits_at_once=1, end=())
    call = Call(jax.random.key(2), teacher)
    inside = jax.jit(jax.grad(lambda m: settings(m, some_rows(), call).total))(student)
    drawn = answers(settings, student, some_rows(), jax.random.split(call.key)[1])
    given = replace(settings, on_policy=0.0, logits_at_once=2**20)
    outside = jax.jit(jax.grad(lambda m: given(m, drawn, call).total))(student)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.exhaustive
def test_micro_batches_have_the_gradient_of_their_own_draws_together():
    """Two micro-batches of four rows against one batch of the eight rows that they drew, each with its own key."""
    method = OnPolicy(prompt=5, end=())
    recipe = nano_recipe(method=method, accumulate=2)
    params, taught = ({k: jnp.asarray(v) for k, v in random_params(recipe.model, seed).items()} for seed in (0, 9))
    student, teacher = model_of(params, recipe.model), model_of(taught, recipe.model)
    state = State(jnp.asarray(3, jnp.int32), params, None, {})
    micro = put_batch(RandomRows(recipe).batch(3), recipe, None)
    got, terms = jax.jit(lambda state: gradient(recipe, state, micro, teacher, None))(state)

    step_key = jax.random.fold_in(jax.random.key(recipe.seed), 3)
    drawn = [
        answers(method, student, Rows(*(x[i] for x in micro)), jax.random.split(jax.random.fold_in(step_key, i))[1])
        for i in range(2)
    ]
    assert (np.asarray(drawn[0].ids_BT) != np.asarray(drawn[1].ids_BT)).any()
    whole = replace(recipe, method=replace(method, on_policy=0.0), accumulate=1)
    rows = Rows(*(jnp.concatenate(parts)[None] for parts in zip(*drawn, strict=True)))
    want, given = jax.jit(lambda state: gradient(whole, state, rows, teacher, None))(state)
    assert float(terms.weight) == float(given.weight) == float(terms.more["own"])
    assert float(terms.total) == pytest.approx(float(given.total), rel=1e-5)
    for name, g in want.items():
        np.testing.assert_allclose(got[name], g, rtol=1e-4, atol=1e-5 * float(jnp.abs(g).max()), err_msg=name)


def test_loss_is_the_mean_over_the_targets_by_the_formula(student, teacher):
    """On given rows, of which some targets count; the reverse divergence, in numpy from both models' logits."""
    rows = some_rows()
    rows.loss_mask_BT[:, ::3] = 0
    settings = OnPolicy(divergence="reverse", on_policy=0.0, logits_at_once=1)
    terms = jax.jit(lambda m: settings(m, rows, Call(jax.random.key(2), teacher)))(student)

    def probabilities(model):
        x = np.exp(logits_of(model, rows))
        return x / x.sum(axis=-1, keepdims=True)

    p, q = probabilities(teacher), probabilities(student)
    counts = rows.loss_mask_BT > 0
    np.testing.assert_allclose(terms.total, by_formula("reverse", p, q, 0.5)[counts].sum(), rtol=1e-4)
    chosen = np.take_along_axis(p, rows.targets_BT[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(terms.more["teacher_nll"], -np.log(chosen)[counts].sum(), rtol=1e-4)
    assert (terms.weight, terms.more["own"]) == (counts.sum(), 0)


@pytest.mark.exhaustive
def test_a_share_of_the_batches_is_the_datas(plain_student, teacher):
    settings = OnPolicy(prompt=3, on_policy=0.25, end=())
    run = jax.jit(lambda k: settings(plain_student, some_rows(), Call(k, teacher)))
    found = [run(jax.random.key(i)) for i in range(60)]
    own = np.array([float(terms.more["own"]) > 0 for terms in found])
    assert 4 <= own.sum() <= 28  # 15 expected; beyond is 1 in 2,000
    assert {float(terms.weight) for terms in found} == {B * (T - 2.0), B * float(T)}


@pytest.mark.parametrize(
    "wrong", [{"divergence": "kl"}, {"beta": 0.0}, {"beta": 1.0}, {"on_policy": 1.5}, {"temperature": 0.0}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError):
        OnPolicy(**wrong)


@pytest.mark.exhaustive
def test_a_stopped_run_draws_the_same(tmp_path):
    """6 steps in one go and in 3 + 3 with a mixture of own and given rows: every bit of the state."""
    recipe = nano_recipe(method=OnPolicy(prompt=5, on_policy=0.5), steps=6, checkpoint_every=3)
    teacher = model_of({k: jnp.asarray(v) for k, v in random_params(recipe.model, 9).items()}, recipe.model)
    run = Run(recipe, RandomRows(recipe), frozen=teacher)
    whole = train(run, tmp_path / "whole", measure_peak=False).state
    turns = []
    train(run, tmp_path / "parts", measure_peak=False, should_stop=lambda: turns.append(0) or len(turns) > 3)
    parts = train(run, tmp_path / "parts", measure_peak=False).state
    assert len(turns) == 4
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def off_policy_then(teacher: Gemma3, second: OnPolicy, steps: tuple[int, int]) -> dict[str, float]:
    """Divergence of a student from its teacher on own texts, after training on cold texts of the teacher.

    The data are the teacher's own draws at temperature 0.3, so a student that draws at 1 comes where they never were.
    """
    config = a_model(0, layers=(GLOBAL,)).config
    cold = OnPolicy(prompt=1, temperature=0.3, end=())
    first = OnPolicy(prompt=1, divergence="reverse", on_policy=0.0, end=())
    optimizer = optax.adam(3e-3)

    def fit(params, method: OnPolicy, key, number: int):
        def step(carry, key):
            params, state = carry

            def loss(params):
                data = answered(cold, teacher, prompts(key, 16), key)
                terms = method(model_of(params, config), data, Call(key, teacher))
                return terms.total / terms.weight

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jax.random.split(key, number)))(params)[0][
            0
        ]

    def prompts(key, rows: int) -> Rows:
        ids = jax.random.randint(key, (rows, 16), 0, V).astype(jnp.int32)
        one = jnp.ones((rows, 16), jnp.int32)
        return Rows(
            ids, ids, one.astype(jnp.float32), one, jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), ids.shape)
        )

    def measured(params, method: OnPolicy, rows: Rows) -> float:
        terms = jax.jit(lambda p: method(model_of(p, config), rows, Call(jax.random.key(99), teacher)))(params)
        return float(terms.total / terms.weight)

    own = replace(first, on_policy=1.0)
    params = {k: jnp.asarray(v) for k, v in random_params(config, 0).items()}
    params = fit(params, first, jax.random.key(1), steps[0])
    data = answered(cold, teacher, prompts(jax.random.key(98), 64), jax.random.key(97))
    before = {"own": measured(params, own, prompts(jax.random.key(99), 64)), "data": measured(params, first, data)}
    params = fit(params, second, jax.random.key(2), steps[1])
    return before | {"after": measured(params, own, prompts(jax.random.key(99), 64))}


@pytest.mark.exhaustive
def test_a_student_that_errs_on_its_own_texts_is_helped_by_them():
    """Off-policy it is twice as far from the teacher on its own texts as on the data's; own texts bring it nearer than
    as many more steps on the data do. Measured: own 0.27, data 0.13; then 0.20 with data and 0.16 with own."""
    teacher = a_model(1, 32, layers=(GLOBAL,))
    more_data = off_policy_then(teacher, OnPolicy(prompt=1, divergence="reverse", on_policy=0.0, end=()), (300, 150))
    more_own = off_policy_then(teacher, OnPolicy(prompt=1, divergence="reverse", end=()), (300, 150))
    assert more_data["own"] > 1.5 * more_data["data"]
    assert more_own["after"] < 0.9 * more_data["after"] < 0.9 * more_data["own"]
