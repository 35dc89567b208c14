"""The cache changes nothing: chunks, rings and pages give what one pass over the whole text gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_ids, random_model, small_config

from gemworks.engine.runner import Row, Runner
from gemworks.model.gemma3 import full_batch
from gemworks.ops import select
from gemworks.ops.xla import attention as xla_attention

WINDOW = 8
CONFIG = small_config(window=WINDOW)
MODEL = random_model(CONFIG)
LENGTH = 3 * WINDOW + 5
IDS = random_ids(CONFIG, LENGTH)
TOLERANCE = 1e-5


def whole(ids: list[int]) -> np.ndarray:
    """Return h_TD of one pass without any cache."""
    h_TD, _ = jax.jit(lambda model, ids_T: model(full_batch(ids_T, CONFIG)))(MODEL, jnp.asarray(ids, jnp.int32))
    return np.asarray(h_TD)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(MODEL, context=128, num_sequences=2, page_size=4)


def in_chunks(runner: Runner, ids: list[int], cuts: list[int]) -> np.ndarray:
    """Return h_TD computed chunk by chunk through the cache."""
    sequence = runner.new_sequence()
    edges = [0, *cuts, len(ids)]
    parts = []
    for start, end in itertools.pairwise(edges):
        h_CD = runner.forward([Row(sequence, ids[start:end])], every_token=True)
        parts.append(np.asarray(h_CD)[: end - start])
    sequence.free()
    return np.concatenate(parts)


@pytest.mark.parametrize("cut", range(1, LENGTH))
def test_prefill_split_anywhere_is_the_whole_prefill(runner, cut):
    np.testing.assert_allclose(in_chunks(runner, IDS, [cut]), whole(IDS), atol=TOLERANCE)


def test_token_by_token_is_the_whole_prefill(runner):
    np.testing.assert_allclose(in_chunks(runner, IDS, list(range(1, LENGTH))), whole(IDS), atol=TOLERANCE)


@pytest.mark.parametrize("prefill", [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3])
def test_prefill_then_decode_across_the_wrap(runner, prefill):
    cuts = list(range(prefill, LENGTH))
    np.testing.assert_allclose(in_chunks(runner, IDS, cuts), whole(IDS), atol=TOLERANCE)


def test_chunk_longer_than_the_window(runner):
    """One chunk of more than two windows, stored, then read back: only its last W tokens may reach the ring."""
    np.testing.assert_allclose(in_chunks(runner, IDS, [2 * WINDOW + 3]), whole(IDS), atol=TOLERANCE)


def test_two_sequences_in_one_step_do_not_meet(runner):
    """Rows of different length and age give what each gives alone."""
    other = random_ids(CONFIG, 21, seed=5)
    first, second = runner.new_sequence(), runner.new_sequence()
    runner.forward([Row(first, IDS[:13])])
    runner.forward([Row(second, other[:2])])
    h_SD = np.asarray(runner.forward([Row(first, IDS[13:20]), Row(second, other[2:])]))
    np.testing.assert_allclose(h_SD[0], whole(IDS[:20])[-1], atol=TOLERANCE)
    np.testing.assert_allclose(h_SD[1], whole(other)[-1], atol=TOLERANCE)
    first.free()
    second.free()


def test_reused_pages_and_ring_carry_nothing_over(runner):
    """A sequence in the pages and ring of a longer one that was freed sees none of it."""
    in_chunks(runner, random_ids(CONFIG, 60, seed=9), [30])
    np.testing.assert_allclose(in_chunks(runner, IDS[:6], [3]), whole(IDS[:6]), atol=TOLERANCE)


def test_rewound_sequence_goes_on_as_if_never_longer(runner):
    sequence = runner.new_sequence()
    runner.forward([Row(sequence, IDS[:20])])
    assert sequence.can_rewind(19)
    sequence.rewind(19)
    h_SD = np.asarray(runner.forward([Row(sequence, [3])]))
    np.testing.assert_allclose(h_SD[0], whole([*IDS[:19], 3])[-1], atol=TOLERANCE)
    sequence.free()


def test_storing_before_attending_is_wrong(monkeypatch):
    """The order in a ring matters, and these tests see it: swapped, a split prefill is no longer the whole one.

    Decoding one token at a time does not see it: the slot it overwrites is the one just outside its window.
    """

    def swapped(q_TNH, k_TKH, v_TKH, plan, kv, *, scale):
        if isinstance(plan, xla_attention.RingPlan):
            stored = xla_attention.store_ring(k_TKH, v_TKH, plan, kv)
            return xla_attention.attend_ring(q_TNH, k_TKH, v_TKH, plan, stored, scale=scale), stored
        return xla_attention.attention(q_TNH, k_TKH, v_TKH, plan, kv, scale=scale)

    real = select.implementation
    monkeypatch.setattr(select, "implementation", lambda op: swapped if op == "attention" else real(op))
    swapped_runner = Runner(MODEL, context=128, page_size=4)
    error = np.abs(in_chunks(swapped_runner, IDS, [WINDOW + 3]) - whole(IDS)).max()
    assert error > 100 * TOLERANCE, f"swapping the order changed nothing ({error:.1e})"


def test_interrupted_step_leaves_an_engine_that_works(monkeypatch):
    """Ctrl-C inside a step loses the cache, which was given to it, but not the runner."""
    runner = Runner(MODEL, context=64, page_size=4)
    sequence = runner.new_sequence()
    runner.forward([Row(sequence, IDS[:5])])

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_program", lambda *_args, **_told: interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.forward([Row(sequence, IDS[5:9])])
    monkeypatch.undo()
    assert sequence.stored == 0
    h_SD = np.asarray(runner.forward([Row(sequence, IDS[:9])]))
    np.testing.assert_allclose(h_SD[0], whole(IDS[:9])[-1], atol=TOLERANCE)


def test_step_memory_does_not_grow_with_the_context():
    """A step touches what it reads and writes, not the pool: XLA must not convert or copy all pages at every token."""
    model = random_model(CONFIG, dtype=jnp.bfloat16)

    def temporary_bytes(context: int) -> int:
        runner = Runner(model, context=context)
        runner.forward([Row(runner.new_sequence(), [0])])
        [program] = runner._programs.values()
        return program.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(256), temporary_bytes(16_384)
    pool_bytes = 16_384 * 2 * CONFIG.num_kv_heads * CONFIG.head_dim * 2
    assert long - short < pool_bytes / 20
