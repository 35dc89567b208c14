"""The CPU attention kernels against their twin in ops/xla: same output within the bound of docs/numerics.md, same
stored keys and values to the bit, the same result for any number of threads, and no copy of the pools.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemworks import env, machine
from gemworks.ops.cpu import attention as cpu
from gemworks.ops.cpu import library
from gemworks.ops.kv import FullPlan, PageKV, PagePlan, RingKV, RingPlan, new_page_kv, new_ring_kv, stored_as
from gemworks.ops.xla import attention as xla

# R rows, C columns, T = R * C tokens, N query heads, K kv heads, H head width, W window, B page size

pytestmark = pytest.mark.skipif(library.why_unavailable() is not None, reason=str(library.why_unavailable()))

DTYPES = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Case:
    """The shape of a step and of the cache it finds."""

    rows: int = 1
    columns: int = 1
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 64
    window: int = 16
    spare: int = 0  # slots of a ring beyond its window
    page: int = 16
    table: int = 24  # pages of a row

    def __str__(self):
        return f"{self.rows}x{self.columns} N{self.heads} K{self.kv_heads} H{self.head_dim}"


SHAPES = (
    Case(),
    Case(rows=4, heads=8, kv_heads=4),
    Case(columns=2, heads=3, kv_heads=3, head_dim=16),
    Case(columns=5, rows=3, heads=6, kv_heads=2),
    Case(columns=16, rows=2, head_dim=128, heads=2),
    Case(columns=64, heads=4, head_dim=256),
    Case(columns=64, rows=2, heads=10, kv_heads=2, head_dim=16),
)


def ages(case: Case) -> list[tuple[list[int], list[int]]]:
    """Return (starts, counts) of the steps a shape is tried with: around the window's edge, and chunks partly real."""
    W, R, C = case.window, case.rows, case.columns
    last = case.table * case.page - C
    starts = [0, 1, W - 1, W, W + 1, 2 * W - C % W, 3 * W + 2, case.page - 1, case.page, 4 * case.page + 1, last]
    full = [([min(s + 3 * r, last) for r in range(R)], [C] * R) for s in starts]
    partial = [
        ([W + 1 + 2 * r for r in range(R)], [(c + r) % (C + 1) for r in range(R)])
        for c in range(0, C + 1, max(1, C // 4))
    ]
    return full + partial


def make_pool(rng, shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    """Return k and v (and their scales) filled with numbers, everywhere."""
    values = [rng.normal(0, 1, shape).astype(np.float32) for _ in "kv"]
    if dtype != "int8":
        return [v.astype(jnp.dtype(dtype)).view(stored_as(dtype)) for v in values]
    scales = [rng.uniform(0.01, 0.03, shape[:-1]).astype(np.float32) for _ in "kv"]
    return [rng.integers(-127, 128, shape).astype(np.int8) for _ in "kv"] + scales


def make_ring(case: Case, dtype: str, starts, counts, rng):
    """Return (plan, kv) with the rows' rings in another order than the rows, and one ring of nobody's."""
    R, slots = case.rows, case.window + case.spare
    kv = RingKV(*map(jnp.asarray, make_pool(rng, (R + 1, slots, case.kv_heads, case.head_dim), dtype)))
    rings = rng.permutation(R + 1)[:R]
    start_R, count_R, ring_R = (jnp.asarray(x, jnp.int32) for x in (starts, counts, rings))
    return RingPlan(start_R, count_R, ring_R, case.window), kv


def make_pages(case: Case, dtype: str, starts, counts, rng):
    """Return (plan, kv) with pages in random order and unused table entries 0."""
    R, M = case.rows, case.table
    kv = PageKV(*map(jnp.asarray, make_pool(rng, (R * M + 2, case.page, case.kv_heads, case.head_dim), dtype)))
    table = rng.permutation(np.arange(1, R * M + 2))[: R * M].reshape(R, M)
    for r in range(R):
        table[r, -(-(starts[r] + counts[r]) // case.page) :] = 0
    return PagePlan(*(jnp.asarray(x, jnp.int32) for x in (starts, counts, table))), kv


MAKE = {"ring": make_ring, "pages": make_pages}


def draw(rng, case: Case) -> list[jax.Array]:
    """Return q, k and v; columns past a row's count are drawn too and must not matter."""
    T = case.rows * case.columns
    return [
        jnp.asarray(rng.normal(0, 1, (T, n, case.head_dim)), jnp.float32) for n in (case.heads, *2 * [case.kv_heads])
    ]


def bound(case: Case, q, keys, values, scale: float, in_pairs: bool) -> float:
    """Return how far order of summation and exp may take two evaluations apart; docs/numerics.md derives it.

    keys and values: the largest norm of a key's head, and the largest number of a value. in_pairs: with half as many
    roundings again, and weights rounded to bf16.
    """
    unit, more = 2.0**-24, 1.5 if in_pairs else 1.0
    score = (more * case.head_dim + 4) * unit * scale * np.linalg.norm(np.asarray(q), axis=-1).max() * keys
    visible = more * min(case.table * case.page, 600)
    return float(2 * (2 * score + (visible + 40) * unit + (1.01 * 2.0**-8 if in_pairs else 0)) * values)


def rounds(dtype: str) -> bool:
    """Whether chunks are multiplied in bf16 pairs here: queries, a ring's chunk and weights are rounded then."""
    return library.isa() == "avx512_bf16" and dtype == "bfloat16"


def as_rounded(x, counts, case: Case) -> jax.Array:
    """Return x_TNH rounded to bf16 in rows of more than one token, as it is in the others."""
    rounded = jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)
    return jnp.where(jnp.repeat(jnp.asarray(counts) > 1, case.columns)[:, None, None], rounded, x)


@functools.partial(jax.jit, static_argnames="scale")
def twin(q, k, v, plan, kv, *, scale):
    """The specification."""
    return xla.attention(q, k, v, plan, kv, scale=scale)


@functools.partial(jax.jit, static_argnames="scale")
def kernel(q, k, v, plan, kv, *, scale):
    """The kernel."""
    return cpu.attention(q, k, v, plan, kv, scale=scale)


def as_floats(pool: jax.Array, scale: jax.Array | None) -> np.ndarray:
    """Return what a pool stands for."""
    if scale is not None:
        return np.asarray(pool, np.float32) * np.asarray(scale)[..., None]
    return np.asarray(pool).view(ml_dtypes.bfloat16 if pool.dtype == np.uint16 else np.float32).astype(np.float32)


def check(case: Case, kind: str, dtype: str, starts, counts, seed: int) -> None:
    """Step both from the same cache; compare every real token's output and every stored number."""
    rng = np.random.default_rng(seed)
    plan, kv = MAKE[kind](case, dtype, starts, counts, rng)
    q, k, v = draw(rng, case)
    scale = case.head_dim**-0.5
    out, stored = kernel(q, k, v, plan, kv, scale=scale)
    in_pairs = rounds(dtype)
    if in_pairs:  # what the kernel rounds, done beforehand; the pools take the same numbers from it
        q, k, v, scale = *(as_rounded(x, counts, case) for x in (q * np.float32(scale), k, v)), 1.0
    expected, expected_kv = twin(q, k, v, plan, kv, scale=scale)
    pools = [*jax.tree.leaves(kv), None, None][:4]
    keys = max(np.linalg.norm(x, axis=-1).max() for x in (as_floats(pools[0], pools[2]), np.asarray(k)))
    values = max(np.abs(x).max() for x in (as_floats(pools[1], pools[3]), np.asarray(v)))
    real = np.arange(case.columns) < np.asarray(counts)[:, None]
    out, expected = (np.asarray(x).reshape(*real.shape, -1) for x in (out, expected))
    step = f"{kind}, {dtype}, starts {starts}, counts {counts}"
    atol = bound(case, q, keys, values, scale, in_pairs)
    np.testing.assert_allclose(out[real], expected[real], rtol=0, atol=atol, err_msg=step)
    assert not out[~real].any(), f"{step}: padding must come out as zeros"
    first = 1 if kind == "pages" else 0  # the twin writes padding to page 0, which is nobody's
    for ours, theirs in zip(jax.tree.leaves(stored), jax.tree.leaves(expected_kv), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[first:], np.asarray(theirs)[first:], err_msg=step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_kernel_is_its_twin(case, kind, dtype):
    for seed, (starts, counts) in enumerate(ages(case)):
        check(case, kind, dtype, starts, counts, seed)


@pytest.fixture
def without_pairs():
    """AVX-512 without its products of bf16 pairs, where they would be used."""
    before, threads = library.isa(), env.threads() or machine.threads()
    if before != "avx512_bf16":
        pytest.skip("this CPU has no AVX512-BF16, or another set is forced")
    library.use("avx512_vnni", threads)
    yield
    library.use(before, threads)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("case", SHAPES[-3:], ids=str)
def test_kernel_without_pairs_is_its_twin(case, kind, without_pairs):
    for seed, (starts, counts) in enumerate(ages(case)):
        check(case, kind, "bfloat16", starts, counts, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 3, 40])
def test_long_texts_are_cut_into_pieces_and_joined(columns, dtype):
    """Thousands of keys: several pieces a row, and windows of many blocks."""
    long = Case(columns=columns, rows=2, window=700, table=160, head_dim=32)
    check(long, "pages", dtype, [2501 - columns, 77], [columns, columns], 0)
    check(long, "ring", dtype, [1500, 699], [columns, columns], 0)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("columns", [1, 3, 40, 200])
def test_same_bits_for_any_number_of_threads(columns, kind):
    case = Case(columns=columns, rows=2, window=100, table=80, head_dim=32)
    starts, counts = [1000, 31], [columns, max(1, columns - 2)]
    rng = np.random.default_rng(0)
    plan, kv = MAKE[kind](case, "bfloat16", starts, counts, rng)
    inputs = *draw(rng, case), plan, kv
    results = []
    try:
        for threads in (1, 2, 3, 7):
            library.set_threads(threads)
            results.append(jax.tree.leaves(kernel(*inputs, scale=0.2)))
    finally:
        library.set_threads(env.threads() or machine.threads())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("kind", MAKE)
def test_a_decoded_row_does_not_depend_on_its_neighbours(kind):
    """What a sequence is answered must not change because others are served in the same step."""
    case = Case(rows=3, table=80, window=100)
    rng = np.random.default_rng(0)
    plan, kv = MAKE[kind](case, "bfloat16", [1000, 31, 0], [1, 1, 1], rng)
    q, k, v = draw(rng, case)
    together = np.asarray(kernel(q, k, v, plan, kv, scale=0.2)[0])
    for r in range(3):
        alone = jax.tree.map(lambda x, r=r: x[r : r + 1], plan)
        out, _ = kernel(q[r : r + 1], k[r : r + 1], v[r : r + 1], alone, kv, scale=0.2)
        np.testing.assert_array_equal(np.asarray(out)[0], together[r])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MAKE)
def test_a_chunk_does_not_depend_on_its_neighbours(kind, dtype):
    """Nor does a row of one token beside longer ones, nor a short chunk after a long text."""
    case = Case(rows=4, columns=40, table=160, window=600, head_dim=32)
    starts, counts = [2400, 1000, 0, 331], [3, 1, 40, 17]
    plan, kv = MAKE[kind](case, dtype, starts, counts, np.random.default_rng(0))
    q, k, v = draw(np.random.default_rng(1), case)
    together = np.asarray(kernel(q, k, v, plan, kv, scale=0.2)[0]).reshape(4, 40, case.heads, -1)
    for r, count in enumerate(counts):
        alone = jax.tree.map(lambda x, r=r: x[r : r + 1], plan)
        columns = 40 if count > 1 else 1  # up to 8 columns would be a draft, and take decode's way
        own = slice(40 * r, 40 * r + columns)
        out, _ = kernel(q[own], k[own], v[own], alone, kv, scale=0.2)
        np.testing.assert_array_equal(np.asarray(out)[:count], together[r, :count])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MAKE)
def test_donated_pools_are_updated_in_place(kind, dtype):
    """A step must not copy its cache: 139 MiB for 1B at 32,768 tokens."""
    case = Case()
    rng = np.random.default_rng(0)
    plan, kv = MAKE[kind](case, dtype, [5], [1], rng)
    q, k, v = draw(rng, case)
    step = jax.jit(lambda kv, q, k, v, plan: cpu.attention(q, k, v, plan, kv, scale=0.2), donate_argnums=0)
    program = step.lower(kv, q, k, v, plan).compile()
    text = program.as_text() or ""
    assert "gemworks_attend" in text and "copy" not in text
    before = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(kv)]
    _, after = program(kv, q, k, v, plan)
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after)] == before


def test_what_no_kernel_takes_goes_to_the_twin():
    """Head widths that are no multiple of 16, pools of other types, and texts without a cache."""
    rng = np.random.default_rng(0)
    for case, dtype in ((Case(head_dim=8), "float32"), (Case(), "float16")):
        plan, kv = make_ring(case, dtype, [3], [1], rng)
        inputs = *draw(rng, case), plan, kv
        assert "gemworks" not in kernel.lower(*inputs, scale=0.2).as_text()
        np.testing.assert_array_equal(kernel(*inputs, scale=0.2)[0], twin(*inputs, scale=0.2)[0])
    full = FullPlan(jnp.arange(1), jnp.zeros(1, jnp.int32), None)
    assert kernel(*draw(rng, Case()), full, None, scale=0.2)[1] is None


def test_numbers_outside_the_pool_are_refused():
    """A wrong page or ring number is an error and not a write into somebody else's memory."""
    rng = np.random.default_rng(0)
    plan, kv = make_pages(Case(), "float32", [20], [1], rng)
    q, k, v = draw(rng, Case())
    for field, value in (
        ("table_RM", jnp.asarray(plan.table_RM).at[0, 1].set(10_000)),
        ("start_R", plan.start_R + 10_000),
    ):
        wrong = dataclasses.replace(plan, **{field: value})
        with pytest.raises(Exception, match="gemworks attention: row 0"):
            jax.block_until_ready(kernel(q, k, v, wrong, kv, scale=0.2))


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8", "float32"])
@pytest.mark.parametrize("columns", [2, 4, 8])
@pytest.mark.parametrize(("is_ring", "start"), [(True, 75), (True, 12), (False, 75)])
def test_a_drafts_columns_are_the_bits_of_one_token_after_another(kv_dtype, columns, is_ring, start):
    """Speculation keeps the text only if checking several tokens at once computes what decode would."""
    window, slots = 20, 28 if start > 20 else 20  # a ring that has not wrapped needs no slots to spare
    rng = np.random.default_rng(columns)
    q, k, v = (jnp.asarray(rng.normal(size=(columns, n, 32)), jnp.float32) for n in (4, 2, 2))
    past_k, past_v = (jnp.asarray(rng.normal(size=(start, 2, 32)), jnp.float32) for _ in "kv")
    new = new_ring_kv(1, slots, 2, 32, kv_dtype) if is_ring else new_page_kv(8, 16, 2, 32, kv_dtype)

    def plan(at: int, count: int):
        arrays = [np.array([x], np.int32) for x in (at, count)]
        if is_ring:
            return RingPlan(*arrays, np.zeros(1, np.int32), window)
        return PagePlan(*arrays, np.arange(1, 8, dtype=np.int32)[None])

    def attend(q, k, v, plan, kv):
        return cpu.attention(q, k, v, plan, kv, scale=0.2)

    _, kv = attend(jnp.zeros((start, 4, 32)), past_k, past_v, plan(0, start), new)
    together, kv_together = attend(q, k, v, plan(start, columns), kv)
    alone = []
    for c in range(columns):
        out, kv = attend(q[c : c + 1], k[c : c + 1], v[c : c + 1], plan(start + c, 1), kv)
        alone.append(out)
    np.testing.assert_array_equal(np.asarray(together), np.concatenate(alone))
    for one, other in zip(jax.tree.leaves(kv_together), jax.tree.leaves(kv), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
