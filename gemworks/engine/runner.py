"""Runs compiled steps of one model over its KV pools. It knows shapes and arrays; requests are the engine's.

A step is compiled for a `StepShape` (step.py): lengths, positions and page tables are data. The cache is donated to
every step, so it is updated in place and never copied. A step is launched and read apart: while the device computes
one, the host prepares the next.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.engine import transfers
from gemworks.engine.draws import Draws
from gemworks.engine.pages import PagePool
from gemworks.engine.plan import Action, CopyPage, Limits, LoadRing, RowPlan, Run, SaveRing, StepPlan
from gemworks.engine.programs import ProgramStore
from gemworks.engine.rings import RingPool
from gemworks.engine.sampler import SampleResult, row_params, score_tokens
from gemworks.engine.scores import SCORE_ROWS
from gemworks.engine.sequence import Sequence
from gemworks.engine.shapes import (
    DRAFT_COLUMNS,
    PAGE_SIZE,
    PREFILL_COLUMNS,
    decode_sizes,
    mixed_sizes,
    ring_slots,
    step_sizes,
)
from gemworks.engine.step import FROM_DEVICE, RowInput, StepExtra, StepOutput, StepShape, pack, run_step
from gemworks.engine.types import MAX_TOP_LOGPROBS
from gemworks.errors import RequestError
from gemworks.memory import give_back_freed_memory
from gemworks.model.gemma3 import Gemma3
from gemworks.ops.kv import Array, new_page_kv, new_ring_kv


@dataclass(frozen=True, slots=True)
class Row:
    """The next tokens of one sequence that is run by hand (`Runner.forward`)."""

    sequence: Sequence
    ids: list[int]


@dataclass(slots=True)
class Pending:
    """A launched step: `read` waits for it and returns what each row drew, `states` the chunk's hidden states."""

    plan: StepPlan
    output: StepOutput | None
    places: list[tuple[int, int]]  # of each row: its first place among the wanted states, and how many it has
    finish: Callable[["Pending"], list[list[SampleResult] | RequestError]]
    compiled_s: float  # the runner's compile_s when it was launched
    columns: int = 1  # of its decode rows
    is_first: bool = False  # some program was made for it
    launched_s: float = field(default_factory=time.perf_counter)

    def read(self) -> list[list[SampleResult] | RequestError]:
        """Return the draws of every row of the plan: none, one, or one for each of 1 + len(draft) places.

        A row whose request cannot draw (its mask allows nothing) has its error instead.
        """
        return [] if self.output is None else self.finish(self)

    def states(self) -> jax.Array:
        """Return h_PD of the prefill row's chunk, padding included."""
        assert self.output is not None
        return self.output.h_PD


class Runner:
    """A model on its device, with the pools its sequences live in. One thread."""

    def __init__(
        self,
        model: Gemma3,
        *,
        context: int,
        num_sequences: int = 1,
        vocab: int | None = None,
        num_pages: int | None = None,
        num_local_pages: int = 0,
        draft: int = 0,
        chunks: tuple[int, ...] = PREFILL_COLUMNS,
        kv_dtype=None,
        page_size: int = PAGE_SIZE,
        programs: ProgramStore | None = None,
    ):
        """`context` is the longest sequence in tokens, `num_sequences` how many run at once.

        vocab: ids from there on have embedding rows but no meaning, and are never drawn (None: all have). num_pages:
        of the global layers, without the reserved one (None: every sequence may reach the context). num_local_pages: of
        the local layers, for the prefix cache. draft: longest draft of speculation. chunks: columns of a prefill step,
        ascending. kv_dtype None is bf16, or fp32 for an fp32 model; or "int8". `programs` keeps compiled steps between
        starts; None: only jax's own cache does, where one is set.
        """
        self.config = model.config
        self.context = context
        self.vocab = self.config.vocab_size if vocab is None else vocab
        self.table_width = -(-context // page_size)
        spec = self.config.local_spec
        self.window = spec.window if spec else None
        pages = num_sequences * self.table_width if num_pages is None else num_pages
        self.pages = PagePool(pages + 1, page_size)
        self.local_pages = PagePool(num_local_pages + 1, page_size) if num_local_pages and spec else None
        self._num_local_pages = self.local_pages.num_pages if self.local_pages else 0
        self.rings = RingPool(num_sequences, ring_slots(self.window, context, page_size, draft))
        self.limits = Limits(
            max_sequences=num_sequences,
            context=context,
            page_size=page_size,
            window=self.window,
            slots=self.rings.slots,
            chunks=chunks,
            draft=draft,
        )
        self.compile_s, self.num_compiled = 0.0, 0
        # A model is hundreds of small Python objects: flattening them each step costs more than calling the program.
        self._leaves, self._structure = jax.tree.flatten(model)
        self._head = model.embed.weight if model.head is None else model.head.weight
        if kv_dtype is None:
            kv_dtype = jnp.float32 if model.embed.weight.dtype == jnp.float32 else jnp.bfloat16
        self._heads = (self.config.num_kv_heads, self.config.head_dim, kv_dtype)
        self._programs: dict[tuple, Any] = {}
        self._store = programs
        self._draws = Draws(self._head, vocab=self.vocab, most=num_sequences)
        self.reset()

    @property
    def model(self) -> Gemma3:
        """The model, put together again from its arrays."""
        return jax.tree.unflatten(self._structure, self._leaves)

    def is_intact(self) -> bool:
        """Whether the pools are there: a step that fails after it was given them takes them along."""
        return not any(pool.is_deleted() for pool in (*self._kv, *(self._local or ()), self._last_X))

    @property
    def kv_bytes(self) -> int:
        """Bytes of all pools: pages, rings and the prefix cache's local pages."""
        local = jax.tree.leaves(jax.eval_shape(self._new_local_layers))
        return sum(pool.size * pool.dtype.itemsize for pool in (*self._kv, *local))

    def reset(self) -> None:
        """Make all pools anew, empty. What owns pages and rings is not told."""
        self._kv, self._kv_structure = self._zeros(self._new_layers)
        # The prefix cache's pool is made when something is first kept. By then the first step is compiled, which is
        # when a process needs most memory: 23 MB less at the peak of 1B's start.
        self._local, self._local_structure = None, jax.tree.structure(jax.eval_shape(self._new_local_layers))
        self._last_X = jax.device_put(np.zeros(self.rings.num_rings + 1, np.int32), may_alias=False)

    # -- steps ---------------------------------------------------------------------------------------------------

    def launch(self, plan: StepPlan, extra: StepExtra | None = None, see: Seq[int] | None = None) -> Pending:
        """Start the actions and the computation of a plan and return at once; `Pending.read` waits.

        extra: what a step with image tokens or adapters needs; see: last position that each chunk token may see.
        """
        made = self.num_compiled
        for action in plan.before:
            self.transfer(action)
        pending = Pending(plan, None, [], self._read, self.compile_s)
        if plan.rows:
            shape = self.shape_of(plan, extra)
            decode = [row_input(row) for row in plan.decode]
            chunk = None if plan.prefill is None else row_input(plan.prefill, see)
            pending.places = [(r * shape.columns, row.count) for r, row in enumerate(plan.decode)]
            pending.places += [(shape.wanted - 1, 1)] * (plan.prefill is not None)
            params = self._params(plan, shape, pending.places)
            pending.columns = shape.columns
            pending.output = self.call(shape, pack(shape, decode, chunk, params), extra)
        for action in plan.after:
            self.transfer(action)
        pending.is_first = self.num_compiled > made
        return pending

    def shape_of(self, plan: StepPlan, extra: StepExtra | None = None) -> StepShape:
        """Return the shape a plan is padded to."""
        columns = max((row.count for row in plan.decode), default=1)
        columns = next(c for c in (1, *DRAFT_COLUMNS) if c >= columns)
        rows = self.decode_rows(len(plan.decode), mixed=plan.prefill is not None)
        chunk = 0 if plan.prefill is None else self.columns_for(plan.prefill.count)
        soft = extra is not None and extra.soft is not None
        adapters = extra is not None and extra.adapters is not None
        return StepShape(rows, columns, chunk, self.table_width, soft=soft, adapters=adapters)

    def decode_rows(self, rows: int, *, mixed: bool) -> int:
        """Return the number of rows that `rows` decoding sequences are padded to, in a step with a chunk or without."""
        if not rows:
            return 0
        sizes = (mixed_sizes if mixed else decode_sizes)(self.limits.max_sequences)
        return next(size for size in sizes if size >= rows)

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make every program that a plan may need, but for steps with images or adapters. Sequences lose nothing."""
        jobs: list[Callable[[], object]] = [
            lambda shape=shape: self.call(shape, pack(shape, (), None, None), None) for shape in self.shapes()
        ]
        jobs += self._draws.warm_up(self._program, self.config.model_dim)
        states_SD = np.zeros((SCORE_ROWS, self.config.model_dim), np.float32)
        jobs.append(lambda: self.score(states_SD, np.zeros(SCORE_ROWS, np.int32)))
        jobs.append(lambda: self.transfer(CopyPage(0, 0)))
        if self.local_pages is not None:
            jobs += [lambda kind=kind: self.transfer(kind(0, ())) for kind in (SaveRing, LoadRing)]
        for i, job in enumerate(jobs):
            job()
            if progress is not None:
                progress(i + 1, len(jobs))

    def shapes(self) -> list[StepShape]:
        """Return every shape that plans without images and adapters are padded to."""
        limits = self.limits
        sizes = step_sizes(limits.max_sequences, draft=limits.draft, chunks=limits.chunks)
        return [StepShape(*size, self.table_width) for size in sizes]

    def columns_for(self, tokens: int) -> int:
        """Return the smallest compiled chunk that holds `tokens` tokens."""
        return next(c for c in self.limits.chunks if c >= tokens)

    def forward(self, rows: Seq[Row], *, every_token: bool = False) -> jax.Array:
        """Compute and store the tokens of sequences run by hand; return h_SD after the final norm.

        S is one row each (its last real token), or with `every_token` R * columns with padding included.
        """
        longest = max(len(row.ids) for row in rows)
        columns = 1 if longest == 1 else self.columns_for(longest)
        for row in rows:
            row.sequence.reserve(row.sequence.stored + len(row.ids))
        shape = StepShape(len(rows), columns, 0, self.table_width)
        inputs = [RowInput(row.ids, row.sequence.stored, row.sequence.ring, row.sequence.table) for row in rows]
        try:
            out = self.call(shape, pack(shape, inputs, None, None), None)
        except BaseException:
            # The old cache was given away and the new one never arrived (Ctrl-C, out of memory): start empty. Sequences
            # that are not in this step lose theirs too.
            self.reset()
            for row in rows:
                row.sequence.rewind(0)
            raise
        for row in rows:
            row.sequence.append(row.ids)
        if every_token:
            return out.h_SD
        return out.h_SD[np.asarray([r * columns + len(row.ids) - 1 for r, row in enumerate(rows)])]

    def new_sequence(self) -> Sequence:
        """Return an empty sequence of this runner's pools, to be run by hand."""
        return Sequence(self.pages, self.rings, window=self.window)

    def score(self, h_SD: Array, ids_S: np.ndarray):
        """Return (logprob_S of the ids, values_Sn, top_ids_Sn) under the hidden states before them.

        n is MAX_TOP_LOGPROBS whatever is asked, so that there is one program, or the vocabulary where that is smaller.
        """
        top = min(MAX_TOP_LOGPROBS, self.vocab)
        arguments, structure = jax.tree.flatten((self._head, h_SD, ids_S))

        def score_flat(arguments):
            return score_tokens(*jax.tree.unflatten(structure, arguments), vocab=self.vocab, top=top)

        return self._program(("score", h_SD.shape, self.vocab, top, structure), score_flat, (arguments,))(arguments)

    def transfer(self, action: Action) -> None:
        """Start a copy between sequences and the prefix cache."""
        entries = transfers.entries_of(action, page_size=self.pages.page_size, slots=self.rings.slots)
        width = max(self.limits.chunks[-1], self.rings.slots) // self.pages.page_size + 1
        for at in range(0, max(len(entries), 1), width):
            table, count = transfers.padded(entries[at : at + width], width)
            if isinstance(action, CopyPage):
                self._copy("copy_pages", (table, count))
            else:
                kind = "load_ring" if isinstance(action, LoadRing) else "save_ring"
                self._copy(kind, (np.asarray(action.ring, np.int32), table, count))

    # -- programs ------------------------------------------------------------------------------------------------

    def call(self, shape: StepShape, control: np.ndarray, extra: StepExtra | None = None) -> StepOutput:
        """Start a step given as a control vector (step.pack); the pools are its own until the next call."""
        more, more_structure = jax.tree.flatten(extra)
        structures = (self._structure, self._kv_structure, more_structure)

        def step(leaves, kv, last_X, control, more):
            model, layers, told = (
                jax.tree.unflatten(*pair) for pair in zip(structures, (leaves, kv, more), strict=True)
            )
            window = self.window or 0
            out, layers, last_X = run_step(
                model, layers, last_X, control, told, shape=shape, window=window, vocab=self.vocab
            )
            return [out.drawn_S, out.h_SD, out.h_PD], jax.tree.leaves(layers), last_X

        key = ("step", shape, self.vocab, structures)
        arguments = (self._leaves, self._kv, self._last_X, control, more)
        out, self._kv, self._last_X = self._program(key, step, arguments, donate=(1, 2))(*arguments)
        return StepOutput(*out)

    def _copy(self, kind: str, arguments: tuple) -> None:
        function, structures = getattr(transfers, kind), (self._kv_structure, self._local_structure)

        def copy(kv, local, arguments):
            layers = jax.tree.unflatten(structures[0], kv)
            if kind == "copy_pages":
                return jax.tree.leaves(function(layers, *arguments))
            return jax.tree.leaves(function(layers, jax.tree.unflatten(structures[1], local), *arguments))

        if self._local is None and kind != "copy_pages":
            self._local, _ = self._zeros(self._new_local_layers)
        saves = kind == "save_ring"
        values = (self._kv, self._local if kind != "copy_pages" else [], list(arguments))
        program = self._program((kind, structures, len(arguments[-2])), copy, values, donate=(1,) if saves else (0,))
        if saves:
            self._local = program(*values)
        else:
            self._kv = program(*values)

    def _program(self, key: tuple, function, arguments: tuple, donate: tuple[int, ...] = ()):
        """Return the program of `function` for arguments like these: at hand, compiled, or as an earlier start left it.

        `key` says all else that it depends on, the structures it makes of its arguments included.
        """
        if key in self._programs:
            return self._programs[key]
        started = time.perf_counter()
        give_back_freed_memory()  # what loading left: compiling is the peak of a start
        jitted = jax.jit(function, donate_argnums=donate)
        if self._store is None:
            program = jitted.lower(*arguments).compile()
        else:
            program = self._store.get(key, arguments, lambda: jitted.lower(*arguments))
        self._programs[key] = program
        give_back_freed_memory()
        self.num_compiled += 1
        self.compile_s += time.perf_counter() - started
        return program

    # -- draws ---------------------------------------------------------------------------------------------------

    def _params(self, plan: StepPlan, shape: StepShape, places: list[tuple[int, int]]):
        """Return how each wanted state is drawn; None where the program need not read the head."""
        samplers: list[Any] = [None] * shape.wanted
        offsets = [0] * shape.wanted
        for row, (first, count) in zip(plan.rows, places, strict=True):
            if row.draws and not row.run.sampler.needs_full:
                ahead = row.run.drawn - row.run.sampler.index
                samplers[first : first + count] = [row.run.sampler] * count
                offsets[first : first + count] = range(ahead, ahead + count)
        return row_params(samplers, offsets) if any(samplers) else None

    def _read(self, pending: Pending) -> list[list[SampleResult] | RequestError]:
        rows, places = pending.plan.rows, pending.places
        full = [i for i, row in enumerate(rows) if row.draws and row.run.sampler.needs_full]
        masks: dict[int, Any] = {i: _mask_of(rows[i].run) for i in full}  # while the device computes
        assert pending.output is not None
        drawn_S = np.asarray(pending.output.drawn_S)
        results: list[list[SampleResult] | RequestError] = []
        for row, (first, count) in zip(rows, places, strict=True):
            ids = drawn_S[first : first + count] if row.draws else ()
            results.append([SampleResult(int(i), None) for i in ids])
        for i, mask in masks.items():
            if isinstance(mask, RequestError):
                results[i] = mask
        full = [i for i in full if not isinstance(masks[i], RequestError)]
        if full:
            h_SD = np.asarray(pending.output.h_SD)
            at = [sum(places[i]) - 1 for i in full]
            samplers = [rows[i].run.sampler for i in full]
            drawn = self._draws(self._program, h_SD[at], samplers, [masks[i] for i in full])
            for i, result in zip(full, drawn, strict=True):
                results[i] = [result]
        return results

    # -- pools ---------------------------------------------------------------------------------------------------

    def _new_layers(self):
        return tuple(
            new_ring_kv(self.rings.num_rings, self.rings.slots, *self._heads)
            if layer.is_local
            else new_page_kv(self.pages.num_pages, self.pages.page_size, *self._heads)
            for layer in self.config.layers
        )

    def _new_local_layers(self):
        pages, size = self._num_local_pages, self.pages.page_size
        if not pages:
            return ()
        return tuple(new_page_kv(pages, size, *self._heads) for layer in self.config.layers if layer.is_local)

    def _zeros(self, layers: Callable) -> tuple[list[jax.Array], Any]:
        """Return empty pools as their arrays; flattening hundreds of objects at each step would cost more than that.

        An empty pool is zeros. Copied from numpy: jnp.zeros compiles a program for every shape, 0.1 s in all.
        """
        shapes, structure = jax.tree.flatten(jax.eval_shape(layers))
        return [jax.device_put(np.zeros(one.shape, one.dtype), may_alias=False) for one in shapes], structure


def row_input(row: RowPlan, see: Seq[int] | None = None) -> RowInput:
    """Return a row as the step takes it; tokens that are not known yet are the device's."""
    run, end = row.run, row.start + row.count - len(row.draft)
    ids = [*run.tokens[row.start : end], *row.draft]
    if not ids:
        ids = [FROM_DEVICE]
    assert len(ids) == row.count, (len(ids), row)
    assert run.ring is not None
    return RowInput(ids, row.start, run.ring, run.table, run.slot, see)


def _mask_of(run: Run):
    """What a run's mask allows now, or the error to end it with."""
    try:
        return run.sampler.mask_words(run.answer)
    except RequestError as error:
        return error
    except Exception as error:
        return RequestError(f"the mask of this request raised {type(error).__name__}: {error}")
