"""Runs compiled steps of one model over its KV pools. It knows shapes and arrays, not requests.

A step is compiled for (rows, columns): decode is one column, prefill a few fixed chunk sizes; lengths, positions and
page tables are data. The cache is donated to every step, so it is updated in place and never copied.
"""

import time
from collections.abc import Sequence as Seq

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.engine.batch import Row, make_batch
from gemworks.engine.pages import PagePool
from gemworks.engine.programs import ProgramStore
from gemworks.engine.rings import RingPool
from gemworks.engine.sampler import RowSampler, SampleResult, choose, choose_call, read_choice, score_tokens
from gemworks.engine.sequence import Sequence
from gemworks.memory import give_back_freed_memory
from gemworks.model.gemma3 import Batch, Gemma3
from gemworks.ops.kv import new_page_kv, new_ring_kv

PAGE_SIZE = 16

# Columns of a prefill step. A chunk is padded to the next of these, so at most three quarters of it are wasted; each is
# one more program to compile (4 to 8 s for 1B on two cores).
PREFILL_COLUMNS = (16, 64, 256, 512)


class Runner:
    """A model on its device, with the pools its sequences live in. One thread."""

    def __init__(
        self,
        model: Gemma3,
        *,
        context: int,
        num_sequences: int = 1,
        kv_dtype=None,
        page_size: int = PAGE_SIZE,
        programs: ProgramStore | None = None,
    ):
        """`context` is the longest sequence in tokens. kv_dtype None is bf16, or fp32 for an fp32 model; or "int8".

        `programs` keeps compiled steps between starts; None: only jax's own cache does, where one is set.
        """
        self.config = model.config
        self.context = context
        self.table_width = -(-context // page_size)
        spec = self.config.local_spec
        self.window = spec.window if spec else None
        self.pages = PagePool(num_sequences * self.table_width + 1, page_size)
        # A text never needs more slots than it has positions.
        self.rings = RingPool(num_sequences, min(self.window or 1, max(context, 1)))
        self.compile_s = 0.0
        # A model is hundreds of small Python objects: flattening them each step costs more than calling the program.
        self._leaves, self._structure = jax.tree.flatten(model)
        self._head = model.embed.weight if model.head is None else model.head.weight
        if kv_dtype is None:
            kv_dtype = jnp.float32 if model.embed.weight.dtype == jnp.float32 else jnp.bfloat16
        heads = (self.config.num_kv_heads, self.config.head_dim, kv_dtype)
        self._new_layers = lambda: tuple(
            new_ring_kv(num_sequences, self.rings.slots, *heads)
            if layer.is_local
            else new_page_kv(self.pages.num_pages, page_size, *heads)
            for layer in self.config.layers
        )
        self._kv = self._new_kv()
        self._programs = {}
        self._store = programs

    @property
    def model(self) -> Gemma3:
        """The model, put together again from its arrays."""
        return jax.tree.unflatten(self._structure, self._leaves)

    def new_sequence(self) -> Sequence:
        """Return an empty sequence of this runner's pools."""
        return Sequence(self.pages, self.rings, window=self.window)

    def columns_for(self, tokens: int) -> int:
        """Return the smallest compiled chunk that holds `tokens` tokens, or the largest there is."""
        return next((c for c in (1, *PREFILL_COLUMNS) if c >= tokens), PREFILL_COLUMNS[-1])

    def forward(self, rows: Seq[Row], *, every_token: bool = False) -> jax.Array:
        """Compute and store the rows' tokens; return h_SD after the final norm.

        S is one row each (its last real token), or with `every_token` R * columns with padding included.
        """
        batch, wanted_S = self._batch(rows, every_token)
        return self._run(self._step(batch, len(rows), wanted_S), rows, batch, wanted_S)[0]

    def forward_and_choose(self, rows: Seq[Row], samplers: list[RowSampler]) -> list[SampleResult]:
        """Compute and store the rows' tokens and return the next token of each: `forward` and `choose` in one program.

        Calling a program of hundreds of arguments takes half a millisecond, a twentieth of a token of 270M.
        """
        batch, wanted_S = self._batch(rows, False)
        call = choose_call(samplers)
        chosen, structure = jax.tree.flatten((call.params, call.penalties))
        program = self._step(batch, len(rows), wanted_S, (call, chosen, structure))
        ids_R, *logprob = self._run(program, rows, batch, wanted_S, chosen)
        return read_choice(samplers, ids_R, tuple(logprob) or None)

    def _batch(self, rows: Seq[Row], every_token: bool) -> tuple[Batch, np.ndarray]:
        """Reserve room for the rows and return the step's arrays, with the tokens whose hidden states are wanted."""
        columns = self.columns_for(max(len(row.ids) for row in rows))
        for row in rows:
            row.sequence.reserve(row.sequence.stored + len(row.ids))
        batch = make_batch(rows, columns, table_width=self.table_width, config=self.config)
        if every_token:
            return batch, np.arange(len(rows) * columns, dtype=np.int32)
        return batch, np.asarray([r * columns + len(row.ids) - 1 for r, row in enumerate(rows)], np.int32)

    def _run(self, program, rows: Seq[Row], batch: Batch, wanted_S: np.ndarray, chosen: list | None = None) -> list:
        """Call a step's program on the cache and note what the rows have stored."""
        try:
            out, self._kv = program(self._leaves, self._kv, jax.tree.leaves(batch), wanted_S, chosen or [])
        except BaseException:
            # The old cache was given away and the new one never arrived (Ctrl-C, out of memory): start empty. Sequences
            # that are not in this step lose theirs too; with one sequence there are none.
            self._kv = self._new_kv()
            for row in rows:
                row.sequence.rewind(0)
            raise
        for row in rows:
            row.sequence.append(row.ids)
        return out

    def choose(self, h_RD: jax.Array, samplers: list[RowSampler]) -> list[SampleResult]:
        """Return the next token of every row, with what it asked to be told about it."""
        call = choose_call(samplers)
        static = {"vocab": call.vocab, "short": call.short, "top": call.top}
        arguments, structure = jax.tree.flatten((self._head, h_RD, call.params, call.penalties))
        key = ("choose", len(samplers), call.key)
        if key not in self._programs:

            def choose_flat(arguments):
                chosen = choose(*jax.tree.unflatten(structure, arguments), **static)
                return jax.tree.leaves(chosen)

            self._programs[key] = self._compiled((key, structure), jax.jit(choose_flat), arguments)
        ids_R, *logprob = self._programs[key](arguments)
        return read_choice(samplers, ids_R, tuple(logprob) or None)

    def score(self, h_SD: jax.Array, ids_S: np.ndarray, *, vocab: int, top: int):
        """Return (logprob_S of the ids, values_Sn, top_ids_Sn) under the hidden states before them."""
        key = ("score", h_SD.shape, vocab, top)
        arguments, structure = jax.tree.flatten((self._head, h_SD, ids_S))
        if key not in self._programs:

            def score_flat(arguments):
                return score_tokens(*jax.tree.unflatten(structure, arguments), vocab=vocab, top=top)

            self._programs[key] = self._compiled((key, structure), jax.jit(score_flat), arguments)
        return self._programs[key](arguments)

    def _new_kv(self) -> list[jax.Array]:
        """Return an empty cache as its arrays; flattening hundreds of objects at each step would cost more than that.

        An empty cache is zeros. Copied from numpy: jnp.zeros compiles a program for every shape, 0.1 s in all.
        """
        shapes, self._kv_structure = jax.tree.flatten(jax.eval_shape(self._new_layers))
        return [jax.device_put(np.zeros(one.shape, one.dtype), may_alias=False) for one in shapes]

    def _step(self, batch: Batch, num_rows: int, wanted_S: np.ndarray, choice=None):
        """Return the program of a batch of these shapes: (leaves, kv, its leaves, wanted_S, chosen) -> (out, kv).

        out is [h_SD]; with `choice`, (ChooseCall, its leaves, their structure), what `choose` gives for those rows. It
        takes and returns lists of arrays: structures of our own classes could not be kept on disk.
        """
        key = ("step", batch.ids_T.shape, num_rows, wanted_S.shape, choice and choice[0].key)
        if key not in self._programs:
            arrays, structure = jax.tree.flatten(batch)
            structures = (self._structure, self._kv_structure, structure)
            call, chosen, choice_structure = choice or (None, [], None)

            def step(leaves, kv, batch, wanted_S, chosen):
                model, kv, batch = (
                    jax.tree.unflatten(*pair) for pair in zip(structures, (leaves, kv, batch), strict=True)
                )
                h_TD, kv = model(batch, kv)
                h_SD = h_TD[wanted_S]
                if call is None:
                    return [h_SD], jax.tree.leaves(kv)
                head = model.embed.weight if model.head is None else model.head.weight
                params, penalties = jax.tree.unflatten(choice_structure, chosen)
                out = choose(head, h_SD, params, penalties, vocab=call.vocab, short=call.short, top=call.top)
                return jax.tree.leaves(out), jax.tree.leaves(kv)

            function = jax.jit(step, donate_argnums=1)
            arguments = (self._leaves, self._kv, arrays, wanted_S, chosen)
            self._programs[key] = self._compiled((key, structures, choice_structure), function, *arguments)
        return self._programs[key]

    def _compiled(self, key: tuple, function, *arguments):
        """Return the program of `function` for arguments like these, compiled or as an earlier start left it.

        `key` says all else that it depends on, the structures it makes of its arguments included.
        """
        started = time.perf_counter()
        if self._store is None:
            program = function.lower(*arguments).compile()
        else:
            program = self._store.get(key, arguments, lambda: function.lower(*arguments))
        give_back_freed_memory()
        self.compile_s += time.perf_counter() - started
        return program
