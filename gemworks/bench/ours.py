"""This package as a user gets it: LLM loads, an engine over its weights answers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemworks import ops
from gemworks.bench.system import SystemSpec
from gemworks.engine.engine import Engine
from gemworks.engine.handle import Handle
from gemworks.engine.memory import plan_kv
from gemworks.engine.runner import Row, Runner
from gemworks.engine.types import Request, SamplingParams
from gemworks.llm import LLM
from gemworks.model.gemma3 import Gemma3

_LOADED_CONTEXT = 1024


class Ours:
    """A model loaded by LLM. Every context and number of sequences has an engine over the same weights."""

    def __init__(self, spec: SystemSpec):
        self._model = _load(Path(spec.path), *spec.formats)
        self._engines: dict[tuple[int, int], Engine] = {}
        self.prepare(_LOADED_CONTEXT, 1)
        self._prompt: list[int] = []
        self._matmuls: dict[int, Callable[[], Any]] = {}

    def prepare(self, context: int, sequences: int) -> dict[str, Any]:
        """Make the pools for one text of `context` tokens; batches make their own."""
        self._engine = self._engine_for(context, 1)
        return {
            "version": f"jax {jax.__version__}",
            "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(self._model)),
        }

    def prefill(self, ids: list[int]) -> float:
        """Compute a prompt and draw the first token."""
        self._engine.forget()
        self._prompt = ids
        started = time.perf_counter()
        _finish(_ask(self._engine, ids, 1))
        return time.perf_counter() - started

    def decode(self, count: int) -> float:
        """Draw `count` more tokens, greedily: this package is charged for sampling, the rivals are not.

        An engine computes an answer to its end without being asked for each token. So the prompt is asked again, which
        the prefix cache has but for its last token, and the clock starts with the answer's first.
        """
        assert self._prompt, "prefill comes before decode"
        handle = _ask(self._engine, self._prompt, count + 1)
        _finish(handle)
        return handle.timings().decode_s

    def batch(self, prompts: list[list[int]], count: int) -> float:
        """Return the seconds that `count` tokens of every prompt take, decoded together."""
        engine = self._engine_for(max(map(len, prompts)) + count + 1, len(prompts))
        for ids in prompts:
            _finish(_ask(engine, ids, 1))
        handles = [_ask(engine, ids, count + 1) for ids in prompts]
        for handle in handles:
            handle.wait_first()
        started, before = time.perf_counter(), engine.stats().tokens_drawn
        for handle in handles:
            _finish(handle)
        seconds, drawn = time.perf_counter() - started, engine.stats().tokens_drawn - before
        return seconds * count * len(prompts) / drawn

    def scores(self, ids: list[int], wanted: list[int]) -> tuple[int, list[float]]:
        """Return the likeliest next token and the logits of the `wanted` ones."""
        runner = Runner(self._model, context=len(ids))
        h_1D = runner.forward([Row(runner.new_sequence(), ids)])
        logits_V = np.asarray(self._model.logits(h_1D))[0]
        return int(logits_V.argmax()), logits_V[wanted].astype(float).tolist()

    def matmuls(self, tokens: int) -> float:
        """Compute the blocks for `tokens` tokens as a prefill does, two kernels a layer, without attention."""
        call = self._matmuls.get(tokens)
        if call is None:
            call = self._matmuls[tokens] = self._compile_matmuls(tokens)
            call()
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    def _compile_matmuls(self, tokens: int) -> Callable[[], Any]:
        config = self._model.config
        rng = np.random.default_rng(0)
        width = config.num_heads * config.head_dim
        x_TD, attn_TE = (
            jax.device_put(rng.standard_normal((tokens, n), np.float32)) for n in (config.model_dim, width)
        )
        turn_TJ = jax.device_put(np.ones((tokens, config.head_dim // 2), np.float32))
        leaves, structure = jax.tree.flatten(self._model)

        def blocks(leaves, x_TD, attn_TE, turn_TJ):
            kept = 0.0  # one number of every result, so that none is left out
            for layer in jax.tree.unflatten(structure, leaves).layers:
                attn, ffw = layer.attn, layer.ffw
                projections = (attn.q.weight, attn.k.weight, attn.v.weight)
                gains = (attn.q_norm.scale, attn.k_norm.scale)
                heads = ops.qkv(x_TD, layer.attn_pre_norm.scale, *projections, *gains, turn_TJ, turn_TJ, eps=1e-6)
                kept += sum(head_TNH[0, 0, 0] for head_TNH in heads)
                norms = (layer.attn_post_norm.scale, layer.ffw_pre_norm.scale, layer.ffw_post_norm.scale)
                matrices = (attn.o.weight, ffw.gate.weight, ffw.up.weight, ffw.down.weight)
                x_TD = ops.block_tail(x_TD, attn_TE, *norms, *matrices, eps=1e-6)
            return kept + x_TD[0, 0]

        given = (leaves, x_TD, attn_TE, turn_TJ)
        compiled = jax.jit(blocks).lower(*given).compile()
        return lambda: compiled(*given).block_until_ready()

    def _engine_for(self, context: int, sequences: int) -> Engine:
        key = (context, sequences)
        if key not in self._engines:
            if sequences > 1:  # one of these at a time: they hold the most memory
                self._engines = {size: engine for size, engine in self._engines.items() if size[1] == 1}
            plan = plan_kv(self._model.config, context=context, max_sequences=sequences)
            self._engines[key] = Engine(Runner(self._model, **plan.runner_arguments()))
        return self._engines[key]


def _ask(engine: Engine, ids: list[int], count: int) -> Handle:
    return engine.submit(Request(prompt=tuple(ids), params=SamplingParams(temperature=0.0, max_tokens=count)))


def _finish(handle: Handle) -> None:
    for _ in handle:
        pass


def _load(directory: Path, format: str | None, embed: str | None) -> Gemma3:
    """The model that LLM loads. Its engine is not used: an answer for a user ends at a stop token."""
    return LLM(directory, context=_LOADED_CONTEXT, quant=format, embed=embed)._engine._runner.model
