"""An LLM without a model: it renders with the embedded model's tokenizer and answers what it was told to, without jax.

FakeLLM("Hello there") answers that text, token by token. `gate` holds every answer back until it is set; `delay_s`
waits before each token; `fail_after` raises after so many tokens. `log` has every request; `running` those not ended.
"""

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from gemworks.engine.live import EngineStats
from gemworks.engine.types import Request, SamplingParams, Timings, TokenEvent, TokenLogprob
from gemworks.errors import ContextLengthError
from gemworks.llm.answers import Answer
from gemworks.llm.calling import KEYWORDS, Calling, calling_of
from gemworks.llm.prompts import Prompter
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.hub import TINY

_REQUEST = ("n", "key", "priority", "deadline_s", "adapter", "mask", "name", "use_cache")


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.load(TINY)


@dataclasses.dataclass(frozen=True)
class FakePrepared:
    request: Request
    stops: tuple[str, ...]
    calling: Calling


class FakeLLM:
    """Give it to a ModelHost: `ModelHost(settings, load=lambda name: FakeLLM("Hello"))`."""

    def __init__(self, text: str = "Hello there, friend.", *, name: str = "tiny", context: int = 512, is_chat=True):
        self.tokenizer = tiny_tokenizer()
        self.text, self.name, self.context, self.is_chat = text, name, context, is_chat
        self.eyes = None
        self.config = type("Config", (), {"model_dim": 8, "vocab_size": self.tokenizer.size})()
        self.load_s = 0.0
        self.num_parameters = 1
        self.dtype = "float32"
        self.gate: threading.Event | asyncio.Event | None = None
        self.delay_s = 0.0
        self.fail_after: tuple[int, Exception] | None = None
        self.cached_tokens = 0
        self.log: list[Request] = []
        self.forms: list[dict[str, Any]] = []  # schema or grammar of each prepared call
        self.running: set[int] = set()
        self.cancelled = 0
        self.closed = False
        self._prompter = Prompter(self.tokenizer, name, lambda: None, opening=[] if is_chat else None)

    # -- the seams of LLM that the server uses -------------------------------------------------------------------------

    def prepare(self, prompt, *, kind="generate", score_from=1, **told) -> FakePrepared:
        told = dict(told)
        stop, crops = told.pop("stop", None), told.pop("pan_and_scan", None)
        self.forms.append({name: told.pop(name) for name in ("schema", "grammar") if name in told})
        calling = calling_of(None, {name: told.pop(name, None) for name in KEYWORDS})
        own = {name: told.pop(name) for name in _REQUEST if told.get(name) is not None}
        params = self.sampling(**{name: value for name, value in told.items() if name not in _REQUEST})
        stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        rendered = self._prompter.render(prompt, pan_and_scan=crops, calling=calling)
        request = Request(
            prompt=tuple(rendered.ids), spans=rendered.spans, params=params, kind=kind, score_from=score_from, **own
        )
        if len(request.prompt) + (params.max_tokens or 1) > self.context:
            raise ContextLengthError(f"this request needs too many tokens; the context holds {self.context}.")
        return FakePrepared(request, stops, calling)

    def request(self, prompt, **told) -> tuple[Request, tuple[str, ...]]:
        prepared = self.prepare(prompt, **told)
        return prepared.request, prepared.stops

    def submit(self, prepared: FakePrepared) -> "FakeAsk":
        self.log.append(prepared.request)
        return FakeAsk(self, prepared)

    def astream(self, prompt, **told):
        return self.submit(self.prepare(prompt, **told)).achunks()

    def sampling(self, **overrides) -> SamplingParams:
        return SamplingParams(**{name: value for name, value in overrides.items() if value is not None})

    def logprobs(self, text: str | Sequence, *, top: int = 0):
        raise AssertionError("the server scores by submit()")

    def embed(self, text) -> np.ndarray:
        raise AssertionError("the server embeds by submit()")

    def stats(self) -> EngineStats:
        return EngineStats(requests=len(self.log), running=len(self.running))

    def warm_up(self, progress=None) -> None:
        if progress is not None:
            progress(1, 1)

    def free_vision(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class FakeAsk:
    """What LLM.submit returns. Iterating over it, as over a Handle, ends with `scores` or `embedding` set."""

    def __init__(self, llm: FakeLLM, prepared: FakePrepared):
        self._llm, self._prepared = llm, prepared
        self.request = prepared.request
        self.scores: list[TokenLogprob | None] | None = None
        self.embedding: np.ndarray | None = None

    async def achunks(self):
        llm, request = self._llm, self.request
        ids = llm.tokenizer.encode(llm.text)
        limit = request.params.max_tokens
        is_cut = limit is not None and limit < len(ids)
        ids = ids[:limit] if is_cut else ids
        answers = [
            Answer(
                llm.tokenizer,
                len(request.prompt),
                request.params,
                self._prepared.stops,
                reader=self._prepared.calling.reader(None),
            )
            for _ in range(request.n)
        ]
        timings = Timings(cached_tokens=llm.cached_tokens)
        llm.running.add(id(self))
        ended = False
        try:
            for place, token_id in enumerate([*ids, None]):
                await self._wait(place)
                for index, answer in enumerate(answers):
                    if answer.is_done:
                        continue
                    reason = None if token_id is not None else "length" if is_cut else "stop"
                    score = None
                    if request.params.logprobs and token_id is not None:
                        top = tuple((token_id + i, -0.5 - i) for i in range(request.params.top_logprobs))
                        score = TokenLogprob(token_id, -0.5, top)
                    yield answer.push(TokenEvent(token_id, score, reason, index), timings)
            ended = True
        finally:
            llm.running.discard(id(self))
            llm.cancelled += not ended and not all(answer.is_done for answer in answers)

    async def afinish(self):
        async for _ in self:
            pass
        return self

    def cancel(self, index=None):
        pass

    def timings(self, index=0) -> Timings:
        return Timings(cached_tokens=self._llm.cached_tokens)

    @property
    def _handle(self):
        return self

    async def _wait(self, place: int) -> None:
        llm = self._llm
        if llm.fail_after is not None and place == llm.fail_after[0]:
            raise llm.fail_after[1]
        if isinstance(llm.gate, asyncio.Event):
            await llm.gate.wait()
        elif llm.gate is not None:
            while not llm.gate.is_set():
                await asyncio.sleep(0.002)
        if llm.delay_s:
            await asyncio.sleep(llm.delay_s)

    async def __aiter__(self):
        await self._wait(0)
        prompt, params = self.request.prompt, self.request.params
        if self.request.kind == "score":
            top = params.top_logprobs
            scores = [
                TokenLogprob(token_id, -0.01 * i, tuple((token_id + j, -0.01 * i - j) for j in range(top)))
                for i, token_id in enumerate(prompt)
            ]
            self.scores = [None, *scores[1:]]
        if self.request.kind == "embed":
            self.embedding = np.array([len(prompt), *prompt[:7], *[0] * (7 - len(prompt[:7]))], dtype=np.float32)
        yield TokenEvent(None, None, "stop", 0)


def fake_state(settings: Any = None):
    """(settings, ModelHost over one FakeLLM, the FakeLLM) for unit tests."""
    from gemworks.server.host import ModelHost
    from gemworks.server.settings import ModelSettings, Settings

    llm = FakeLLM()
    settings = settings or Settings(models=ModelSettings(names=("tiny",)))
    return settings, ModelHost(settings.models, load=lambda name: llm), llm
