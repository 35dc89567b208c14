"""Random schedules of everything an engine can be asked, each made from its number alone; shared by the test groups."""

import random

import numpy as np
from driven_engine import CONFIG, CONTEXT, PAGE_SIZE, WINDOW, DrivenEngine, random_adapter, resized

from gemworks.engine.adapters import AdapterPool
from gemworks.engine.handle import Handle
from gemworks.engine.speculative import verify
from gemworks.engine.types import Request, SamplingParams, SoftSpan

VOCAB = CONFIG.vocab_size
ADAPTERS = {"one": random_adapter(CONFIG, 1), "two": random_adapter(CONFIG, 2, rank=2)}
BASES = [np.random.default_rng(50 + i).integers(0, VOCAB, CONTEXT).tolist() for i in range(3)]
IMAGES = {f"image {i}": np.random.default_rng(80 + i).normal(0, 2, (8, CONFIG.model_dim)) for i in range(3)}


class Mix:
    """One random schedule: a pool's sizes, requests, when they come, when they are cancelled."""

    def __init__(self, number: int):
        self.rng = random.Random(number)
        rng = self.rng
        self.sequences = rng.choice((1, 2, 3, 3))
        self.chunks = rng.choice(((8,), (32,), (8, 32)))
        self.pages = rng.choice((14, 20, 26, 40, 72))
        self.local_pages = rng.choice((0, 3, 6, 12, 30))
        self.room = min(CONTEXT, self.pages * PAGE_SIZE)
        self.has_adapters, self.has_images = rng.random() < 0.3, rng.random() < 0.3
        self.arrivals, step = [], 0
        for _ in range(rng.randint(3, 8)):
            step += rng.choice((0, 0, 1, 2, 5, 12))
            self.arrivals.append(step)
        self.cancels: list[tuple[int, Handle, int | None]] = []
        self.asked: list[tuple[Request, Handle]] = []
        self.step = 0
        self.clock = 0.0

    def now(self) -> float:
        return self.clock

    def between_steps(self, engine: DrivenEngine) -> None:
        """Submit and cancel what is due."""
        self.step += 1
        self.clock += 1.0
        while self.arrivals and self.arrivals[0] <= self.step:
            self.arrivals.pop(0)
            request = self.request(len(self.asked))
            handle = engine.submit(request)
            self.asked.append((request, handle))
            if self.rng.random() < 0.15:
                index = self.rng.choice((None, self.rng.randrange(request.n)))
                self.cancels.append((self.step + self.rng.randint(0, 12), handle, index))
        for due, handle, index in list(self.cancels):
            if due <= self.step:
                self.cancels.remove((due, handle, index))
                handle.cancel(index)

    def prompt(self) -> list[int]:
        """Return a text of 0 to 5 windows and some tokens, often one that begins as others do."""
        rng = self.rng
        length = min(rng.randint(0, 5) * WINDOW + rng.randint(1, WINDOW), self.room - 2)
        if rng.random() < 0.35:
            ended = [(request, handle) for request, handle in self.asked if handle.is_done and not request.spans]
            if ended:
                request, handle = rng.choice(ended)
                answer = [item.token_id for item in handle._items if getattr(item, "index", None) == 0]
                text = [*request.prompt, *(token for token in answer if token is not None)]
                return [*text, *(rng.randrange(VOCAB) for _ in range(rng.randint(1, 9)))][: self.room - 2]
        shared = rng.choice((0, length - 1, rng.randint(0, length)))
        return [*rng.choice(BASES)[:shared], *(rng.randrange(VOCAB) for _ in range(length - shared))]

    def request(self, number: int) -> Request:
        rng = self.rng
        prompt = self.prompt()
        spans: tuple[SoftSpan, ...] = ()
        if self.has_images and rng.random() < 0.7:
            spans = self.spans(len(prompt))
            for span in spans:
                prompt[span.start : span.end] = [VOCAB - 1] * span.length
        kind = rng.choice(("generate",) * 8 + ("score", "embed"))
        room = self.room - len(prompt)
        answer = min(rng.choice((1, 2, 6, 12, 24)), room) if kind == "generate" else None
        mask = every_other if kind == "generate" and rng.random() < 0.12 else None
        return Request(
            prompt=tuple(prompt),
            params=self.params(answer) if kind == "generate" else SamplingParams(top_logprobs=rng.choice((0, 3))),
            kind=kind,
            n=rng.choice((1, 1, 1, 2, 3)) if kind == "generate" else 1,
            key=rng.choice(("a", "a", "b")),
            priority=rng.choice((0, 0, 0, 1)),
            deadline_s=self.clock + rng.randint(1, 25) if kind == "generate" and rng.random() < 0.08 else None,
            spans=spans,
            adapter=rng.choice((None, *ADAPTERS)) if self.has_adapters else None,
            mask=mask,
            score_from=rng.randint(1, len(prompt)) if kind == "score" else 1,
            use_cache=rng.random() < 0.9,
            name=f"request {number}",
        )

    def params(self, answer: int | None) -> SamplingParams:
        rng = self.rng
        told: dict = {
            "max_tokens": answer,
            "temperature": rng.choice((0.0, 0.0, 0.7, 1.5)),
            "seed": rng.randrange(2**63 - 9),
        }
        told |= {
            "top_k": rng.choice((0, 1, 20, 64, 500)),
            "top_p": rng.choice((1.0, 0.9)),
            "min_p": rng.choice((0.0, 0.05)),
        }
        if rng.random() < 0.25:
            told |= {"stop_ids": tuple(rng.sample(range(VOCAB), 12))}
        if rng.random() < 0.15:
            told |= {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.2}
        if rng.random() < 0.1:
            told |= {"logit_bias": {rng.randrange(VOCAB): 3.0, rng.randrange(VOCAB): -100.0}}
        if rng.random() < 0.2:
            told |= {"logprobs": True, "top_logprobs": rng.choice((0, 2, 20))}
        return SamplingParams(**told)

    def spans(self, length: int) -> tuple[SoftSpan, ...]:
        """Return up to two images that do not touch, none longer than the smallest largest chunk."""
        rng = self.rng
        found, at = [], rng.randint(0, 6)
        for _ in range(2):
            count = rng.randint(2, 8)
            if at + count >= length:
                break
            key = rng.choice(list(IMAGES))
            rows = IMAGES[key][:count].astype(np.float32)
            found.append(SoftSpan(start=at, length=count, key=(key, count), embed=lambda rows=rows: rows))
            at += count + rng.randint(1, 12)
        return tuple(found)

    def run(self, runner, drafting=None) -> DrivenEngine:
        """Compute everything and return the engine."""
        told = {"sequences": self.sequences, "pages": self.pages, "local_pages": self.local_pages}
        resized(runner, chunks=self.chunks, **told)
        engine = DrivenEngine(runner, adapters=adapter_pool() if self.has_adapters else None, clock=self.now)
        engine._drafting = drafting
        engine.between_steps = lambda: self.between_steps(engine)
        while self.arrivals:
            engine.run_until_idle()
        return engine


def every_other(answer: list[int]) -> np.ndarray | None:
    """Allow even and odd ids in turn, and after five tokens all."""
    return None if len(answer) >= 5 else np.full(VOCAB // 32, 0x55555555 << len(answer) % 2, np.uint32)


def adapter_pool() -> AdapterPool:
    pool = AdapterPool(CONFIG, slots=2, max_rank=3)
    for name, adapter in ADAPTERS.items():
        pool.load(name, adapter)
    return pool


class DraftsOfAnOracle:
    """Drafts of an answer that is known already, some of them spoiled: in the place of an engine's `Drafting`."""

    def __init__(self, answers: dict[tuple[str, int], list[int]], rng: random.Random, longest: int):
        self.answers, self.rng, self.longest = answers, rng, longest
        self.proposed = self.accepted = 0

    def add(self, run) -> None: ...

    def forget(self, run) -> None: ...

    def prepare(self, decoding) -> None:
        for run in decoding:
            run.draft = []
            if run.sampler.needs_full or run.drawn != len(run.answer) or len(decoding) > 4:
                continue
            rest = self.answers[run.request.name, run.index][len(run.answer) :]
            draft = rest[: self.rng.randint(0, min(self.longest, run.limit - len(run.answer) - 1))]
            run.draft = [token if self.rng.random() < 0.8 else self.rng.randrange(VOCAB) for token in draft]
        for run in decoding:
            run.ahead = not run.sampler.needs_full and not run.draft

    def verify(self, run, draft, drawn) -> list[int]:
        accepted = verify(draft, drawn)
        self.proposed += len(draft)
        self.accepted += len(accepted) - 1
        return accepted
