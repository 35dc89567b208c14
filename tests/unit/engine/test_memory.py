"""The plan of the pools against the arrays themselves, and against arithmetic by hand; and what is refused."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import random_model, small_config

from gemworks.engine.memory import (
    COMPILE_BYTES,
    PROCESS_BYTES,
    PROGRAM_BYTES,
    LargestStep,
    fit,
    num_programs,
    plan_kv,
    plan_memory,
    window_pages,
    workspace_bytes,
)
from gemworks.engine.runner import Runner
from gemworks.engine.sampler import penalty_widths
from gemworks.engine.shapes import draw_sizes, few_sizes
from gemworks.errors import CapacityError, ConfigError
from gemworks.model import costs
from gemworks.model.config import GEMMA3_1B, GEMMA3_27B, RELEASED, LayerSpec
from gemworks.ops.kv import new_page_kv, new_ring_kv

STEP = LargestStep(tokens=512, rows=1)


def process(sequences):
    """What is there besides, by the constants, with every program made."""
    return PROCESS_BYTES + COMPILE_BYTES + PROGRAM_BYTES * num_programs(sequences)


def bytes_of_arrays(config, plan):
    """Bytes of the pools, made as the runner makes them."""
    heads = (config.num_kv_heads, config.head_dim, jnp.dtype(plan.kv_dtype))

    def pools():
        found = []
        for layer in config.layers:
            if layer.is_local:
                found.append(new_ring_kv(plan.max_sequences, plan.slots, *heads))
                found += [new_page_kv(plan.local_pages, plan.page_size, *heads)] if plan.local_pages else []
            else:
                found.append(new_page_kv(plan.pages, plan.page_size, *heads))
        return found

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(pools)))


@pytest.mark.parametrize("size", RELEASED)
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8", "float32"])
@pytest.mark.parametrize(
    "asked",
    [
        {"context": 8192},
        {"context": 300, "max_sequences": 4, "page_size": 16},
        {"context": 5000, "max_sequences": 16, "draft": 7, "cache_tokens": 999, "page_size": 32},
        {"context": 4096, "max_sequences": 3, "pages": 100, "local_pages": 0},
    ],
)
def test_the_plan_is_the_bytes_of_the_arrays(size, kv_dtype, asked):
    plan = plan_kv(RELEASED[size], kv_dtype=kv_dtype, **asked)
    assert plan.total_bytes == bytes_of_arrays(RELEASED[size], plan)


@settings(max_examples=60, deadline=None)
@given(
    context=st.integers(1, 512),
    sequences=st.integers(1, 5),
    draft=st.integers(0, 9),
    cache=st.integers(0, 300),
    page=st.sampled_from([1, 4, 16, 64]),
    kv_dtype=st.sampled_from(["bfloat16", "int8", "float32"]),
    layers=st.sampled_from(["mixed", "local", "global"]),
)
def test_any_plan_is_the_bytes_of_the_arrays_and_has_room(context, sequences, draft, cache, page, kv_dtype, layers):
    one = {"local": LayerSpec(window=8, rope_base=1e4), "global": LayerSpec(window=None, rope_base=1e6)}
    config = small_config(layers=None if layers == "mixed" else (one[layers],) * 3)
    plan = plan_kv(
        config,
        context=context,
        max_sequences=sequences,
        draft=draft,
        cache_tokens=cache,
        page_size=page,
        kv_dtype=kv_dtype,
    )
    assert plan.total_bytes == bytes_of_arrays(config, plan)
    # Every sequence at its longest, and the cache, without page 0.
    assert (plan.pages - 1) * page >= sequences * context + cache
    assert plan.longest == context
    if layers != "global":
        assert plan.slots % page == 0 and plan.slots >= min(context, 8 + draft)
        assert plan.slots - page < min(context, 8 + draft)
        assert plan.local_pages - 1 == (sequences + 1) * window_pages(min(8, context), page)


def test_27b_at_128k_is_ten_gibibytes_and_416_mebibytes():
    plan = plan_kv(GEMMA3_27B, context=131_072, local_pages=0)
    assert plan.pages_bytes - plan.page_bytes == 10 * 2**30
    assert plan.rings_bytes == 416 * 2**20
    assert plan.total_bytes == 10 * 2**30 + 416 * 2**20 + plan.page_bytes


def test_one_sequence_without_a_cache_is_what_costs_says():
    """Two ways to count, written apart: by layer and position there, by pool here. 4,096 is whole pages."""
    for config in RELEASED.values():
        for kv in ("bfloat16", "int8", "float32"):
            plan = plan_kv(config, context=4096, kv_dtype=kv, local_pages=0)
            assert plan.total_bytes - plan.page_bytes == costs.kv_bytes(config, 4096, kv=kv)


def test_a_draft_takes_whole_pages_of_every_ring():
    assert [plan_kv(GEMMA3_1B, context=4096, draft=k).slots for k in (0, 1, 16, 17)] == [512, 528, 528, 544]
    assert plan_kv(GEMMA3_1B, context=100, draft=7).slots == 112  # never more than the context


def test_a_kept_window_may_begin_and_end_inside_a_page():
    """Positions 5 to 12 (a window of 8) touch pages 1, 2 and 3 of 4 tokens."""
    assert window_pages(8, 4) == len({p // 4 for p in range(5, 13)}) == 3
    assert window_pages(0, 4) == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"context": 40_000}, "context must be at most 32,768 for this model, got 40,000."),
        ({"context": 0}, "context must be at least 1, got 0."),
        ({"context": 64, "max_sequences": 0}, "max_sequences must be at least 1, got 0."),
        ({"context": 64, "draft": -1}, r"draft must be 0 \(no speculation\) or more tokens, got -1."),
        ({"context": 64, "kv_dtype": "int4"}, 'kv_dtype must be one of bfloat16, int8, float32, got "int4".'),
        ({"context": 64, "pages": 1}, "pages must be at least 2, one of which is never handed out; got 1."),
        ({"context": 64, "local_pages": 1}, r"local_pages must be 0 \(none\), or at least 2, one never handed out"),
    ],
)
def test_sizes_that_make_no_engine_are_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        plan_kv(GEMMA3_1B, **asked)


def test_without_a_limit_in_the_way_fit_gives_the_whole_plan():
    plan = fit(GEMMA3_1B, weight_bytes=10**9, budget_bytes=10**11, context=8192, max_sequences=8, cache_tokens=4096)
    assert plan.kv == plan_kv(GEMMA3_1B, context=8192, max_sequences=8, cache_tokens=4096)
    assert plan.kv.cache_tokens == 4096
    assert plan.available_bytes == 10**11


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(900_000_000, 3_000_000_000),
    context=st.integers(16, 32_768),
    sequences=st.integers(1, 16),
    kv_dtype=st.sampled_from(["bfloat16", "int8"]),
)
def test_fit_keeps_to_the_budget_and_uses_it(budget, context, sequences, kv_dtype):
    weights = 700_000_000
    asked = {"context": context, "max_sequences": sequences, "kv_dtype": kv_dtype}
    whole = plan_kv(GEMMA3_1B, **asked)
    least_pages = -(-context // 16) + 1
    try:
        plan = fit(GEMMA3_1B, weight_bytes=weights, budget_bytes=budget, step=STEP, **asked)
    except CapacityError:
        least = plan_kv(GEMMA3_1B, **asked, pages=least_pages, local_pages=window_pages(whole.window, 16) + 1)
        assert plan_memory(GEMMA3_1B, least, weight_bytes=weights, step=STEP).total_bytes > budget
        return
    assert plan.total_bytes == weights + plan.kv.total_bytes + workspace_bytes(GEMMA3_1B, STEP) + process(sequences)
    assert plan.total_bytes <= budget
    assert least_pages <= plan.kv.pages <= whole.pages
    assert plan.kv.longest == context
    is_whole = (plan.kv.pages, plan.kv.local_pages) == (whole.pages, whole.local_pages)
    assert is_whole or budget - plan.total_bytes < whole.page_bytes + whole.local_page_bytes


def test_too_little_memory_is_refused_with_both_numbers_and_what_would_fit():
    """1B: 1 KiB a position; 22 rings of 512 a sequence are 11.5 MB, 8,192 tokens of 4 global layers 33.6 MB."""
    workspace = workspace_bytes(GEMMA3_1B, STEP)
    rings, pages, local = 16 * 22 * 512 * 1024, 513 * 16 * 4 * 1024, 34 * 16 * 22 * 1024
    needed = 700_000_000 + rings + pages + local + workspace + process(16)
    with pytest.raises(CapacityError) as refused:
        fit(GEMMA3_1B, weight_bytes=700_000_000, budget_bytes=needed - 1, context=8192, max_sequences=16, step=STEP)
    first, second = str(refused.value).splitlines()
    assert first == (
        f"this engine needs at least {needed / 1e9:.2f} GB: weights 0.70 GB, keys and values "
        f"{(rings + pages + local) / 1e9:.2f} GB (16 sequences, 8,192 tokens of context), workspace "
        f"{workspace / 1e9:.2f} GB, the process {process(16) / 1e9:.2f} GB; "
        f"{(needed - 1) / 1e9:.2f} GB are available."
    )
    assert second.startswith('It would fit with kv="int8" (')
    assert (
        fit(
            GEMMA3_1B, weight_bytes=700_000_000, budget_bytes=needed, context=8192, max_sequences=16, step=STEP
        ).total_bytes
        == needed
    )


def test_the_advice_is_the_least_change_that_fits():
    """In int8 already: three of 16 rings more than there is room for."""
    asked = {"weight_bytes": 700_000_000, "context": 8192, "kv_dtype": "int8", "step": STEP}
    thirteen = 700_000_000 + process(16) + workspace_bytes(GEMMA3_1B, STEP)
    position = 2 * (256 + 4)
    thirteen += position * (13 * 22 * 512 + 513 * 16 * 4 + 34 * 16 * 22)
    with pytest.raises(CapacityError, match=r"\nIt would fit with 13 sequences \("):
        fit(GEMMA3_1B, budget_bytes=thirteen, max_sequences=16, **asked)
    with pytest.raises(CapacityError, match="Use a smaller model or a smaller format of its weights"):
        fit(GEMMA3_1B, budget_bytes=800_000_000, max_sequences=16, **asked)


@pytest.mark.parametrize(
    ("sequences", "draft", "kv_dtype"), [(1, 0, "float32"), (4, 3, "bfloat16"), (5, 7, "int8"), (16, 0, "bfloat16")]
)
def test_a_runner_has_these_pools_and_programs(sequences, draft, kv_dtype):
    config = small_config()
    plan = plan_kv(config, context=200, max_sequences=sequences, draft=draft, kv_dtype=kv_dtype, cache_tokens=100)
    runner = Runner(random_model(config), **plan.runner_arguments())
    assert runner.kv_bytes == plan.total_bytes
    assert runner.limits.slots == plan.slots
    assert runner.pages.num_pages == plan.pages and runner.local_pages.num_pages == plan.local_pages
    draws = len(draw_sizes(sequences)) * (len(penalty_widths(262_144)) + 1) + len(few_sizes(sequences))
    apart = draws + 1 + 3
    assert num_programs(sequences, draft) == len(runner.shapes()) + apart


def test_plain_xla_needs_room_for_logits_and_for_matrices_as_floats():
    """A row of 262,144 fp32 logits is 1 MiB; a quantized table becomes floats first."""
    one, two = (
        workspace_bytes(GEMMA3_1B, LargestStep(tokens=8, rows=rows, has_kernels=False, is_quantized=False))
        for rows in (1, 2)
    )
    assert two - one == 2**20
    floats = workspace_bytes(GEMMA3_1B, LargestStep(tokens=8, rows=1, has_kernels=False, is_quantized=True))
    assert floats - one > 3 * 262_144 * 1152
