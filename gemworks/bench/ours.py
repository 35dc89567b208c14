"""This package as a user gets it: LLM loads, its engine answers; many texts at once go through a Runner."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemworks import ops
from gemworks.bench.system import SystemSpec
from gemworks.engine.batch import Row
from gemworks.engine.engine import Engine
from gemworks.engine.runner import PREFILL_COLUMNS, Runner
from gemworks.engine.sampler import RowSampler
from gemworks.engine.types import SamplingParams, TokenEvent
from gemworks.llm import LLM
from gemworks.model.gemma3 import Gemma3

_LOADED_CONTEXT = 1024


class Ours:
    """A model loaded by LLM. Contexts and batches other than the first are runners over the same weights."""

    def __init__(self, spec: SystemSpec):
        self._model = _load(Path(spec.path), *spec.formats)
        self._vocab = self._model.config.vocab_size
        self._engines: dict[int, Engine] = {}
        self.prepare(_LOADED_CONTEXT, 1)
        self._batch: tuple[tuple[int, int], Runner] | None = None
        self._matmuls: dict[int, Callable[[], Any]] = {}
        self._events: Iterator[TokenEvent] | None = None

    def prepare(self, context: int, sequences: int) -> dict[str, Any]:
        """Make the pools for one text of `context` tokens; batches make their own."""
        if context not in self._engines:
            self._engines[context] = Engine(Runner(self._model, context=context), vocab=self._vocab)
        self._engine = self._engines[context]
        return {
            "version": f"jax {jax.__version__}",
            "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(self._model)),
        }

    def prefill(self, ids: list[int]) -> float:
        """Compute a prompt and draw the first token."""
        self._engine.forget()
        params = SamplingParams(temperature=0.0)
        started = time.perf_counter()
        self._events = self._engine.generate(ids, params)
        next(self._events)
        return time.perf_counter() - started

    def decode(self, count: int) -> float:
        """Draw `count` more tokens, greedily: this package is charged for sampling, the rivals are not."""
        assert self._events is not None, "prefill comes before decode"
        started = time.perf_counter()
        for _ in range(count):
            next(self._events)
        return time.perf_counter() - started

    def batch(self, prompts: list[list[int]], count: int) -> float:
        """Compute `count` tokens of every prompt, one row each a step."""
        runner = self._batch_runner(len(prompts), max(map(len, prompts)) + count)
        rows = [runner.new_sequence() for _ in prompts]
        samplers = [RowSampler(SamplingParams(temperature=0.0), ids, vocab=self._vocab) for ids in prompts]
        last = []
        for sequence, ids, sampler in zip(rows, prompts, samplers, strict=True):
            for start in range(0, len(ids), PREFILL_COLUMNS[-1]):
                h_1D = runner.forward([Row(sequence, ids[start : start + PREFILL_COLUMNS[-1]])])
            last += [chosen.token_id for chosen in runner.choose(h_1D, [sampler])]
        started = time.perf_counter()
        for _ in range(count):
            step = [Row(sequence, [token]) for sequence, token in zip(rows, last, strict=True)]
            last = [chosen.token_id for chosen in runner.forward_and_choose(step, samplers)]
        seconds = time.perf_counter() - started
        for sequence in rows:
            sequence.free()
        return seconds

    def scores(self, ids: list[int], wanted: list[int]) -> tuple[int, list[float]]:
        """Return the likeliest next token and the logits of the `wanted` ones."""
        runner = Runner(self._model, context=len(ids))
        h_1D = runner.forward([Row(runner.new_sequence(), ids)])
        logits_V = np.asarray(self._model.logits(h_1D))[0]
        return int(logits_V.argmax()), logits_V[wanted].astype(float).tolist()

    def matmuls(self, tokens: int) -> float:
        """Compute every matrix of the blocks for `tokens` tokens, quantizing the activations; nothing between them."""
        call = self._matmuls.get(tokens)
        if call is None:
            call = self._matmuls[tokens] = self._compile_matmuls(tokens)
            call()
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    def _compile_matmuls(self, tokens: int) -> Callable[[], Any]:
        weights = [
            linear.weight
            for layer in self._model.layers
            for linear in (
                *(layer.attn.q, layer.attn.k, layer.attn.v, layer.attn.o),
                *(layer.ffw.gate, layer.ffw.up, layer.ffw.down),
            )
        ]
        rng = np.random.default_rng(0)
        widths = {weight.shape[1] for weight in weights}
        x = {width: jax.device_put(rng.standard_normal((tokens, width), np.float32)) for width in widths}
        # One element of each product, so that none of them is left out.
        program = jax.jit(lambda x, weights: sum(ops.linear(x[w.shape[1]], w)[0, 0] for w in weights))
        compiled = program.lower(x, weights).compile()
        return lambda: compiled(x, weights).block_until_ready()

    def _batch_runner(self, sequences: int, context: int) -> Runner:
        key = (sequences, context)
        if self._batch is None or self._batch[0] != key:
            self._batch = key, Runner(self._model, context=context, num_sequences=sequences)
        return self._batch[1]


def _load(directory: Path, format: str | None, embed: str | None) -> Gemma3:
    """The model that LLM loads. Its engine is not used: an answer for a user ends at a stop token."""
    return LLM(directory, context=_LOADED_CONTEXT, quant=format, embed=embed)._engine._runner.model
