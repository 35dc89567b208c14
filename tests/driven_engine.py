"""An engine that the test's own thread drives step by step, and what every answer must be, computed without any cache.

The expected tokens come from one pass over the whole text (no ring, no page, no chunk), adapters merged into the
matrices, and a draw written in numpy from transformers' order of filters; only the uniform numbers are jax's.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from small_models import random_model, small_config

from gemworks.engine.engine import Engine
from gemworks.engine.handle import Handle
from gemworks.engine.pages import PagePool
from gemworks.engine.rings import RingPool
from gemworks.engine.runner import Runner
from gemworks.engine.types import Request, SamplingParams, TokenEvent
from gemworks.model.config import LayerSpec
from gemworks.model.gemma3 import Gemma3, full_batch
from gemworks.model.layers import SoftTokens
from gemworks.model.lora import target_shape
from gemworks.weights.adapter import LoraAdapter, LoraDelta

WINDOW, CONTEXT, PAGE_SIZE = 8, 96, 4
CHUNKS = (8, 32)

# Few layers compile quickly. Keys and values of the second and third depend on the whole text before them, so that a
# page or ring of another text cannot go unseen.
LAYERS = (
    LayerSpec(window=None, rope_base=1e6),
    LayerSpec(window=WINDOW, rope_base=1e4),
    LayerSpec(window=None, rope_base=1e6),
)
CONFIG = small_config(window=WINDOW, layers=LAYERS)


class DrivenEngine(Engine):
    """No thread of its own: what is asked waits until `run_until_idle` is called. Every step is audited.

    between_steps() is called before each plan, and may submit and cancel.
    """

    def __init__(self, runner: Runner, **told):
        super().__init__(runner, **told)
        self.between_steps: Callable[[], None] = lambda: None
        self.plans = []
        inbox = self._worker._inbox
        self._worker.do = inbox.commands.append  # type: ignore[method-assign]

    def run_until_idle(self) -> bool:
        worked = super().run_until_idle()
        self.audit()
        return worked

    def _plan(self):
        self.between_steps()
        self._worker.take_commands()
        self.audit()
        plan = super()._plan()
        self.audit()
        if plan is not None:
            self.plans.append(plan)
        return plan

    def audit(self) -> None:
        self._scheduler.audit()

    def answer(self, request: Request) -> list[TokenEvent]:
        """Compute a request to its end and return its events."""
        handle = self.submit(request)
        self.run_until_idle()
        return list(handle)

    def check_empty(self) -> None:
        """Everything comes back once the cache is dropped."""
        runner = self._runner
        assert not self._live and not self._worker.has_commands
        self._scheduler.drop_cache()
        self.audit()
        assert runner.pages.num_free == runner.pages.num_pages - 1
        assert runner.rings.num_free == runner.rings.num_rings
        assert runner.local_pages is None or runner.local_pages.num_free == runner.local_pages.num_pages - 1
        if self._adapters is not None:
            assert not any(loaded.running for loaded in self._adapters._loaded.values()), "an adapter is still in use"


def resized(
    runner: Runner,
    *,
    sequences: int | None = None,
    pages: int | None = None,
    local_pages: int | None = None,
    chunks: Sequence[int] | None = None,
) -> Runner:
    """Make a runner hand out less than it has arrays for, and return it: nothing is compiled again.

    What earlier texts left in its pools stays there. local_pages 0: no prefix cache.
    """
    limits = runner.limits
    runner.rings = RingPool(sequences or limits.max_sequences, limits.slots)
    runner.pages = PagePool((pages or limits.max_sequences * runner.table_width) + 1, limits.page_size)
    runner.local_pages = PagePool(local_pages + 1, limits.page_size) if local_pages else None
    runner.limits = dataclasses.replace(limits, max_sequences=runner.rings.num_rings, chunks=tuple(chunks or CHUNKS))
    return runner


def new_runner(model: Gemma3, *, sequences: int = 3, local_pages: int = 30, **told) -> Runner:
    told = {"context": CONTEXT, "page_size": PAGE_SIZE, "chunks": CHUNKS} | told
    return Runner(model, num_sequences=sequences, num_local_pages=local_pages, **told)


def random_adapter(config, seed: int, *, rank: int = 3, spread: float = 0.4) -> LoraAdapter:
    """Return an adapter of some matrices of every layer, strong enough to change most answers."""
    rng = np.random.default_rng(seed)
    deltas = {}
    for layer in range(len(config.layers)):
        for target in ("q", "v", "down"):
            F, D = target_shape(config, target)
            a_rD, b_Fr = (rng.normal(0, spread, shape).astype(np.float32) for shape in ((rank, D), (F, rank)))
            deltas[layer, target] = LoraDelta(a_rD, b_Fr * 0.3)
    return LoraAdapter(Path("made/by/hand"), deltas)


def merged(model: Gemma3, adapter: LoraAdapter) -> Gemma3:
    """Return the model with W + B A in the place of each adapted W."""
    layers = list(model.layers)
    for (i, target), delta in adapter.deltas.items():
        half = "attn" if target in ("q", "k", "v", "o") else "ffw"
        part = getattr(layers[i], half)
        linear = getattr(part, target)
        weight = linear.weight + jnp.asarray(delta.b_Fr @ delta.a_rD)
        part = dataclasses.replace(part, **{target: dataclasses.replace(linear, weight=weight)})
        layers[i] = dataclasses.replace(layers[i], **{half: part})
    return dataclasses.replace(model, layers=tuple(layers))


class Reference:
    """What requests must give. Texts are padded to CONTEXT, so that one program serves all."""

    def __init__(self, model: Gemma3, adapters: Mapping[str | None, LoraAdapter] | None = None):
        self.vocab = model.config.vocab_size
        self._dim = model.config.model_dim
        self._models = {None: model} | {name: merged(model, one) for name, one in (adapters or {}).items()}
        config = model.config

        @jax.jit
        def states(model, ids_T, see_T, soft):
            h_TD, _ = model(full_batch(ids_T, config, see_T=see_T, soft=soft))
            return h_TD, model.logits(h_TD)

        self._states = states

    def states(self, request: Request, answer: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Return (h_TD, logits_TV) of a request's prompt and the answer tokens after it."""
        ids = [*request.prompt, *answer]
        ids_T = np.zeros(CONTEXT, np.int32)
        ids_T[: len(ids)] = ids
        see_T, index_T = np.arange(CONTEXT, dtype=np.int32), np.full(CONTEXT, -1, np.int32)
        rows_TD = np.zeros((CONTEXT, self._dim), np.float32)
        for span in request.spans:
            at = slice(span.start, span.end)
            see_T[at], index_T[at], rows_TD[at] = span.end - 1, np.arange(span.start, span.end), span.embed()
        h_TD, logits_TV = self._states(self._models[request.adapter], ids_T, see_T, SoftTokens(rows_TD, index_T))
        return np.asarray(h_TD)[: len(ids)], np.asarray(logits_TV, np.float64)[: len(ids)]

    def check(self, request: Request, handle: Handle, events: Sequence[TokenEvent]) -> int:
        """Compare all that came of a request with what must have come; return how many tokens were compared."""
        if request.kind != "generate" and events[0].finish_reason != "stop":
            assert events[0].finish_reason in ("cancelled", "deadline") and len(events) == 1
            assert handle.scores is None and handle.embedding is None, "a result that is not whole"
        elif request.kind == "score":
            self._check_scores(request, handle)
        elif request.kind == "embed":
            h_TD, _ = self.states(request)
            np.testing.assert_allclose(handle.embedding, h_TD.mean(axis=0), atol=2e-4)
        if request.kind != "generate":
            return 0
        return sum(
            self._check_answer(request, i, [event for event in events if event.index == i]) for i in range(request.n)
        )

    def _check_scores(self, request: Request, handle: Handle) -> None:
        _, logits_TV = self.states(request)
        assert handle.scores is not None and len(handle.scores) == len(request.prompt)
        first = max(1, request.score_from)
        assert handle.scores[:first] == [None] * min(first, len(request.prompt))
        for t in range(first, len(request.prompt)):
            self._check_logprob(handle.scores[t], logits_TV[t - 1], request.prompt[t], request.params.top_logprobs)

    def _check_logprob(self, told, logits_V: np.ndarray, token_id: int, top: int) -> None:
        logprobs_V = logits_V - np.logaddexp.reduce(logits_V)
        assert told.token_id == token_id and len(told.top) == top
        np.testing.assert_allclose(told.logprob, logprobs_V[token_id], atol=2e-4)
        np.testing.assert_allclose([value for _, value in told.top], np.sort(logprobs_V)[::-1][:top], atol=2e-4)

    def _check_answer(self, request: Request, index: int, events: Sequence[TokenEvent]) -> int:
        params = request.params
        reason = events[-1].finish_reason
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        drawn = [event for event in events if event.token_id is not None]
        ids = [event.token_id for event in drawn]
        assert len(drawn) == len(events) if reason == "length" else len(drawn) == len(events) - 1
        assert reason in ("stop", "length", "cancelled", "deadline"), reason
        limit = CONTEXT - len(request.prompt) if params.max_tokens is None else params.max_tokens
        assert len(ids) == limit if reason == "length" else len(ids) <= limit
        _, logits_TV = self.states(request, ids)
        start = len(request.prompt) - 1
        for i in range(len(ids) + (reason == "stop")):
            got = ids[i] if i < len(ids) else None
            self._check_draw(request, index, ids[:i], logits_TV[start + i], got)
            if i < len(drawn) and params.logprobs:
                self._check_logprob(drawn[i].logprob, logits_TV[start + i], ids[i], params.top_logprobs)
            elif i < len(drawn):
                assert drawn[i].logprob is None
        return len(ids)

    def _check_draw(self, request: Request, index: int, before: list[int], logits_V: np.ndarray, got: int | None):
        """`got` None: a stop id was drawn here."""

        def is_right(logits_V: np.ndarray) -> bool:
            expected = expected_draw(request, index, before, logits_V)
            return expected in request.params.stop_ids if got is None else expected == got

        if is_right(logits_V):
            return
        # Two candidates so near that the order of a sum decides: the only difference there may be.
        rng = np.random.default_rng(0)
        near = any(is_right(logits_V + rng.normal(0, 1e-5, logits_V.shape)) for _ in range(30))
        expected = expected_draw(request, index, before, logits_V)
        assert near, f"answer {index} of {request.name}: token {len(before)} is {got}, expected {expected}"


def expected_draw(request: Request, index: int, before: list[int], logits_V: np.ndarray) -> int:
    """Return the token that answer `index` draws after `before`, from the model's raw logits."""
    params = request.params
    x = logits_V.astype(np.float64).copy()
    if params.repetition_penalty != 1.0:
        for token in {*request.prompt, *before}:
            if token < len(x):
                x[token] = (
                    x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
                )
    for token, count in Counter(before).items():
        x[token] -= params.frequency_penalty * count + params.presence_penalty
    for token, bias in params.logit_bias.items():
        x[token] += bias
    if request.mask is not None and (words := request.mask(before)) is not None:
        bits = np.unpackbits(np.asarray(words, np.uint32).view(np.uint8), bitorder="little")[: len(x)]
        x[bits == 0] = -np.inf
    order = np.argsort(-x, kind="stable")
    if params.temperature == 0:
        return int(order[0])
    x = x[order] / params.temperature
    keep = np.ones(len(x), bool) if params.top_k == 0 else x >= x[min(params.top_k, len(x)) - 1]
    p = np.where(keep, np.exp(x - x[0]), 0.0)
    p /= p.sum()
    keep &= (np.cumsum(p) - p < params.top_p) | (params.top_p >= 1)
    keep &= p >= params.min_p * p[0]
    keep[0] = True
    edges = np.cumsum(np.where(keep, p, 0.0))
    assert params.seed is not None
    place = int(np.sum(edges <= _uniform(params.seed + index, len(before)) * edges[-1]))
    return int(order[min(place, np.flatnonzero(keep)[-1])])


def _uniform(seed: int, index: int) -> float:
    key = jax.random.wrap_key_data(jnp.asarray([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32), impl="threefry2x32")
    return float(jax.random.uniform(jax.random.fold_in(key, index)))


GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def greedy(prompt: Sequence[int], tokens: int = 8, **told) -> Request:
    return Request(prompt=tuple(prompt), params=SamplingParams(temperature=0.0, max_tokens=tokens), **told)


def collected(handle: Handle) -> list[TokenEvent]:
    """Return the events of a request that has ended; what went wrong is raised."""
    assert handle.is_done
    return list(handle)


def wraps(tokens: int) -> int:
    """Return how often a text goes round its window."""
    return math.floor(max(tokens - 1, 0) / WINDOW)


def model(seed: int = 0) -> Gemma3:
    return random_model(CONFIG, seed)
