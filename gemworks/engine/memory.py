"""How much memory an engine takes, before anything is allocated. Arithmetic over a config; no jax.

    weights      as the kernels read them (the caller knows; model/costs.py counts them by format)
    keys, values pages of the global layers, a ring a sequence for the local ones, local pages of the prefix cache
    workspace    what one step needs beside them while it runs
    process      Python, jax, its compiler and the compiled programs

Keys and values are exact to the byte: the pools are allocated once and never grow. The other two are estimates from
measurements, which stand beside the constants. GB is 10^9 bytes.

A ring holds `slots` positions (shapes.ring_slots): the window, and as many more as a draft may be long, since rejected
tokens overwrite what the next step still needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from gemworks.engine.shapes import PAGE_SIZE, PREFILL_COLUMNS, draw_sizes, few_sizes, ring_slots, step_sizes
from gemworks.errors import CapacityError, ConfigError
from gemworks.model.config import TextConfig

KVType = Literal["bfloat16", "int8", "float32"]
KV_TYPES: tuple[KVType, ...] = get_args(KVType)

LARGEST_CHUNK = PREFILL_COLUMNS[-1]  # tokens of a prompt that one step computes at most

_ELEMENT_BYTES: dict[str, int] = {"bfloat16": 2, "int8": 1, "float32": 4}
_SCALE_BYTES = 4  # int8: one fp32 scale for each position and kv head, of keys and of values


@dataclass(frozen=True, kw_only=True, slots=True)
class KVPlan:
    """Sizes of the pools. Counts of pages have page 0 in them, which no sequence owns (engine/pages.py).

    window, slots and local_pages are 0 where there are no local layers; local_pages 0 keeps no windows. Bytes are of
    all layers of their kind together.
    """

    kv_dtype: KVType
    context: int
    max_sequences: int
    page_size: int
    draft: int
    window: int
    slots: int
    pages: int
    local_pages: int
    page_bytes: int
    ring_bytes: int
    local_page_bytes: int

    @property
    def pages_bytes(self) -> int:
        """Bytes of all pages of the global layers."""
        return self.pages * self.page_bytes

    @property
    def rings_bytes(self) -> int:
        """Bytes of all rings."""
        return self.max_sequences * self.ring_bytes

    @property
    def local_pages_bytes(self) -> int:
        """Bytes of the local pages of the prefix cache."""
        return self.local_pages * self.local_page_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of every pool."""
        return self.pages_bytes + self.rings_bytes + self.local_pages_bytes

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that fits when nothing else runs."""
        return min(self.context, (self.pages - 1) * self.page_size)

    @property
    def cache_tokens(self) -> int:
        """Tokens the prefix cache keeps while every sequence is as long as the context; 0 where they compete."""
        return max(0, self.pages - 1 - self.max_sequences * _ceil(self.context, self.page_size)) * self.page_size

    def runner_arguments(self) -> dict[str, Any]:
        """Return what makes `Runner` allocate these pools; it counts pages without page 0."""
        return {
            "context": self.context,
            "num_sequences": self.max_sequences,
            "num_pages": self.pages - 1,
            "num_local_pages": max(0, self.local_pages - 1),
            "draft": self.draft,
            "kv_dtype": self.kv_dtype,
            "page_size": self.page_size,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What an engine will take, in bytes. `available_bytes` is the budget it was made for, 0 if none was given."""

    weight_bytes: int
    kv: KVPlan
    workspace_bytes: int
    process_bytes: int
    compile_bytes: int
    available_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Peak resident memory of the process at a start that compiles its programs; a later one has no compiler."""
        parts = self.weight_bytes, self.kv.total_bytes, self.workspace_bytes, self.process_bytes, self.compile_bytes
        return sum(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class LargestStep:
    """The largest step of an engine: tokens computed, rows drawn for, and whether the CPU kernels compute it.

    Where they do not, plain XLA turns a quantized matrix into floats before it multiplies.
    """

    tokens: int
    rows: int
    has_kernels: bool = True
    is_quantized: bool = True


def plan_kv(
    config: TextConfig,
    *,
    context: int,
    max_sequences: int = 1,
    kv_dtype: KVType = "bfloat16",
    page_size: int = PAGE_SIZE,
    draft: int = 0,
    cache_tokens: int = 0,
    pages: int | None = None,
    local_pages: int | None = None,
) -> KVPlan:
    """Return the sizes of every pool.

    pages None: every sequence may be as long as the context, with `cache_tokens` of the prefix cache beside them.
    Fewer pages are fine: sequences are preempted when they run out. local_pages None: a window for each sequence and
    one more (a chat's last turn is kept while its next one is); 0: none is kept, and a model with local layers finds no
    prefix again. Raises ConfigError for sizes that make no engine.
    """
    _check(config, context=context, max_sequences=max_sequences, kv_dtype=kv_dtype, page_size=page_size, draft=draft)
    position_bytes = _position_bytes(config, kv_dtype)
    num_local = sum(spec.is_local for spec in config.layers)
    local = config.local_spec
    slots = ring_slots(local.window, context, page_size, draft) if local and local.window else 0
    window = min(local.window, context) if local and local.window else 0
    if pages is None:
        pages = max_sequences * _ceil(context, page_size) + _ceil(cache_tokens, page_size) + 1
    if local_pages is None:
        local_pages = (max_sequences + 1) * window_pages(window, page_size) + 1 if window else 0
    if pages < 2:
        raise ConfigError(f"pages must be at least 2, one of which is never handed out; got {pages}.")
    if local_pages < 0 or local_pages == 1:
        raise ConfigError(f"local_pages must be 0 (none), or at least 2, one never handed out; got {local_pages}.")
    return KVPlan(
        kv_dtype=kv_dtype,
        context=context,
        max_sequences=max_sequences,
        page_size=page_size,
        draft=draft,
        window=window,
        slots=slots,
        pages=pages,
        local_pages=local_pages if window else 0,
        page_bytes=(len(config.layers) - num_local) * page_size * position_bytes,
        ring_bytes=num_local * slots * position_bytes,
        local_page_bytes=num_local * page_size * position_bytes,
    )


def window_pages(window: int, page_size: int) -> int:
    """Return the local pages that one kept window takes at most: it may begin and end inside a page."""
    return _ceil(window, page_size) + 1 if window else 0


# What a process has beside weights, pools and workspace: the interpreter, jax and a loaded model's objects are 183 MB,
# for 270M as for 1B (jax 0.10.2, Linux, CPU kernels), and grow by some 36 when requests come.
PROCESS_BYTES = 220_000_000

# A compiled program that is loaded: 8 to 13 MB each, 10.4 on average of 20 (270M), 10.3 of 17 (1B), code on disk 0.5.
PROGRAM_BYTES = 10_400_000

# The compiler, while it works and what stays of it: what was measured over all other parts at the first start's peak,
# 50 MB (270M), 66 (1B), 113 (six layers in bf16; 86 where other processes compute meanwhile and fewer of the compiler's
# threads run at once). Programs that come from the cache do without.
COMPILE_BYTES = 82_000_000


def num_programs(max_sequences: int, draft: int = 0) -> int:
    """Return how many programs an engine has when all are made (Runner.warm_up).

    Every size of step, draws apart (with short and long lists of penalized ids, with a mask alone, among few tokens),
    scores, and three kinds of copies.
    """
    draws = 3 * len(draw_sizes(max_sequences)) + len(few_sizes(max_sequences))
    return len(step_sizes(max_sequences, draft=draft)) + draws + 1 + 3


def workspace_bytes(config: TextConfig, step: LargestStep) -> int:
    """Return an upper bound of what a step allocates while it runs and gives back.

    A token has its residual and a branch (2 D), queries and attention's result, keys and values, in fp32; the kernels
    add its activations in 8 bits and one row of D. XLA keeps gate and up in fp32 instead, and a row of logits each.
    Measured with 512 tokens (temporaries of the compiled step, MB; this bound in brackets): 270M kernels 7.9 (10.5 with
    the kernels' own), XLA bf16 11.8 (12.3); 1B kernels 9.2 (19).
    """
    D, F, q = config.model_dim, config.ffw_dim, config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    if step.has_kernels:
        per_token = 4 * (2 * D + 2 * q + 2 * kv) + (q + D + F) * 9 // 8 + 4 * D
        return step.tokens * per_token
    per_token = 4 * max(2 * F + 3 * D, 2 * D + 2 * q + 2 * kv)
    bytes_ = step.tokens * per_token + step.rows * 4 * config.vocab_size
    # The largest matrix as floats, and as integers before that.
    return bytes_ + (config.vocab_size * D * 13 // 4 if step.is_quantized else 0)


def plan_memory(
    config: TextConfig, kv: KVPlan, *, weight_bytes: int, step: LargestStep, programs: int | None = None
) -> MemoryPlan:
    """Return what an engine with these pools takes. programs None: all that its requests may need."""
    if programs is None:
        programs = num_programs(kv.max_sequences, kv.draft)
    return MemoryPlan(
        weight_bytes=weight_bytes,
        kv=kv,
        workspace_bytes=workspace_bytes(config, step),
        process_bytes=PROCESS_BYTES + programs * PROGRAM_BYTES,
        compile_bytes=COMPILE_BYTES,
    )


def fit(
    config: TextConfig,
    *,
    weight_bytes: int,
    budget_bytes: int,
    context: int,
    max_sequences: int = 1,
    kv_dtype: KVType = "bfloat16",
    page_size: int = PAGE_SIZE,
    draft: int = 0,
    cache_tokens: int = 0,
    local_pages: int | None = None,
    step: LargestStep | None = None,
) -> MemoryPlan:
    """Return the largest plan in `budget_bytes`, at most what `plan_kv` would give without a limit.

    Rings and one sequence of the whole context always fit, with one kept window; what is left over goes to the prefix
    cache's windows (up to a quarter) and to pages. Raises CapacityError, with what is needed and what there is, before
    anything is allocated.
    """
    step = step or LargestStep(tokens=LARGEST_CHUNK + max_sequences, rows=max_sequences + 1)
    whole = plan_kv(
        config,
        context=context,
        max_sequences=max_sequences,
        kv_dtype=kv_dtype,
        page_size=page_size,
        draft=draft,
        cache_tokens=cache_tokens,
        local_pages=local_pages,
    )
    least = plan_memory(config, _least(whole), weight_bytes=weight_bytes, step=step)
    room = budget_bytes - least.total_bytes
    if room < 0:
        raise CapacityError(_no_room(config, least, budget_bytes))
    more_local = whole.local_pages - least.kv.local_pages
    if whole.local_page_bytes:
        more_local = min(more_local, max(room // 4, room - _pages_missing(whole, least.kv)) // whole.local_page_bytes)
    room -= more_local * whole.local_page_bytes
    more = whole.pages - least.kv.pages
    if whole.page_bytes:
        more = min(more, room // whole.page_bytes)
    kv = replace(least.kv, pages=least.kv.pages + more, local_pages=least.kv.local_pages + more_local)
    return replace(least, kv=kv, available_bytes=budget_bytes)


def _least(kv: KVPlan) -> KVPlan:
    """Pools in which one sequence of the whole context runs, and one window is kept."""
    pages = min(kv.pages, _ceil(kv.context, kv.page_size) + 1)
    return replace(kv, pages=pages, local_pages=min(kv.local_pages, window_pages(kv.window, kv.page_size) + 1))


def _pages_missing(whole: KVPlan, least: KVPlan) -> int:
    return (whole.pages - least.pages) * whole.page_bytes


def _no_room(config: TextConfig, least: MemoryPlan, budget_bytes: int) -> str:
    """What is needed, what there is, and what would fit."""
    kv = least.kv
    parts = [
        f"weights {_gb(least.weight_bytes)}",
        f"keys and values {_gb(kv.total_bytes)} ({kv.max_sequences} sequences, {kv.context:,} tokens of context)",
        f"workspace {_gb(least.workspace_bytes)}",
        f"the process {_gb(least.process_bytes + least.compile_bytes)}",
    ]
    lines = [
        f"this engine needs at least {_gb(least.total_bytes)}: {', '.join(parts)}; {_gb(budget_bytes)} are available."
    ]
    for text, other in _smaller(config, kv):
        needed = least.total_bytes - kv.total_bytes + _least(other).total_bytes
        if needed <= budget_bytes:
            lines.append(f"It would fit with {text} ({_gb(needed)}).")
            break
    else:
        lines.append("Use a smaller model or a smaller format of its weights, or give it more memory.")
    return "\n".join(lines)


def _smaller(config: TextConfig, kv: KVPlan) -> Iterator[tuple[str, KVPlan]]:
    """Smaller pools and what to ask for, what costs a user least first."""

    def made(**changes) -> KVPlan:
        asked = {"context": kv.context, "max_sequences": kv.max_sequences, "kv_dtype": kv.kv_dtype} | changes
        local = None if kv.local_pages else 0
        return plan_kv(config, page_size=kv.page_size, draft=kv.draft, local_pages=local, **asked)

    if kv.kv_dtype != "int8":
        yield 'kv="int8"', made(kv_dtype="int8")
    for sequences in range(kv.max_sequences - 1, 0, -1):
        yield f"{sequences} sequence{'s' if sequences > 1 else ''}", made(max_sequences=sequences)
    context = kv.context // 2
    while context >= 512:
        yield f"one sequence and {context:,} tokens of context", made(max_sequences=1, context=context)
        context //= 2


def _position_bytes(config: TextConfig, kv_dtype: KVType) -> int:
    """Bytes of one position in one layer: keys and values of every kv head, with the scales of int8."""
    scale = _SCALE_BYTES if kv_dtype == "int8" else 0
    return 2 * config.num_kv_heads * (config.head_dim * _ELEMENT_BYTES[kv_dtype] + scale)


def _check(config: TextConfig, *, kv_dtype: str, draft: int, context: int, **sizes: int) -> None:
    for name, value in (("context", context), *sizes.items()):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    if context > config.max_positions:
        raise ConfigError(f"context must be at most {config.max_positions:,} for this model, got {context:,}.")
    if draft < 0:
        raise ConfigError(f"draft must be 0 (no speculation) or more tokens, got {draft}.")
    if kv_dtype not in _ELEMENT_BYTES:
        raise ConfigError(f'kv_dtype must be one of {", ".join(_ELEMENT_BYTES)}, got "{kv_dtype}".')


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
