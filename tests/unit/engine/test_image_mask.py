"""The mask of images through chunks, batches, prefix cache and preemption: what one pass over the whole text gives.

An image's tokens see each other both ways, in local layers too, where an image may be longer than the window. Expected
answers and log-probabilities come from driven_engine.Reference (no ring, no page, no chunk); transformers' own are in
tests/oracle/vision/test_full_model.py. The last tests break the mask and see these comparisons fail.
"""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from driven_engine import (
    CONFIG,
    CONTEXT,
    PAGE_SIZE,
    WINDOW,
    DrivenEngine,
    Reference,
    collected,
    model,
    new_runner,
    resized,
)

from gemworks.engine.composer import Composer
from gemworks.engine.types import Request, SamplingParams, SoftSpan
from gemworks.ops import select

LENGTH, WHOLE = 60, 64  # tokens of a prompt, and of a chunk that holds one
TOKENS = 8

# (first token, length) of the images of a prompt
LAYOUTS = {
    "middle": [(20, 7)],
    "first": [(0, 9)],
    "last": [(48, 12)],
    "longer than a window": [(13, 12)],
    "two in one window": [(10, 3), (14, 3)],
    "two in a row": [(10, 6), (18, 6)],
    "windows before the question": [(4, 6)],
    "at the edges of pages": [(8, 8), (24, 4), (32, 12)],
    "one token": [(30, 1), (33, 2)],
}
LONGEST = 12

rows = {key: np.random.default_rng(i).normal(0, 2, (LONGEST, CONFIG.model_dim)) for i, key in enumerate("abcde")}


def image(start: int, length: int, key: str = "a") -> SoftSpan:
    return SoftSpan(start=start, length=length, key=(key, length), embed=lambda: rows[key][:length].astype(np.float32))


def prompt(layout: str, *, seed: int = 0, keys: str = "abc", **told) -> Request:
    """A request for TOKENS greedy tokens with log-probabilities, after random text with the images of a layout."""
    spans = tuple(image(*at, key) for at, key in zip(LAYOUTS[layout], keys, strict=False))
    return request(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, LENGTH).tolist(), spans, **told)


def request(ids: list[int], spans: tuple[SoftSpan, ...], **told) -> Request:
    for span in spans:
        ids[span.start : span.end] = [CONFIG.vocab_size + 7] * span.length  # a placeholder need not be a word
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=True, top_logprobs=20)
    return Request(prompt=tuple(ids), spans=spans, **{"params": params, "name": "image"} | told)


# Compiling is most of what these tests take: make test has them on one backend, make test-oracle on all.
FIRST, *OTHERS = sorted(select.available())


@pytest.fixture(scope="module", params=[FIRST, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in OTHERS)])
def backend(request):
    with select.force("*", request.param):
        yield request.param


@pytest.fixture(scope="module")
def runner(backend):
    return new_runner(model(), chunks=(WHOLE,), sequences=2)


@pytest.fixture(scope="module")
def reference(backend) -> Reference:
    return Reference(model())


def new_engine(runner, *, chunk: int = WHOLE, **told) -> DrivenEngine:
    """An engine whose chunks have at most `chunk` tokens, in steps that are all padded to WHOLE: one program."""
    engine = DrivenEngine(resized(runner, chunks=(chunk,), **{"local_pages": 30} | told))
    runner.limits = dataclasses.replace(runner.limits, chunks=(WHOLE,))
    return engine


def cut_at(monkeypatch, ends: list[int]) -> None:
    """Let chunks end where a test says."""
    monkeypatch.setattr(Composer, "_chunk_end", lambda self, run, budget: next(e for e in ends if e > run.computed))


def chunk_ends(engine: DrivenEngine) -> list[int]:
    return [plan.prefill.start + plan.prefill.count for plan in engine.plans if plan.prefill is not None]


def check(engine: DrivenEngine, reference: Reference, *requests: Request) -> None:
    """Compute requests together, and compare tokens and log-probabilities of each with those of one pass alone."""
    handles = [engine.submit(one) for one in requests]
    engine.run_until_idle()
    for one, handle in zip(requests, handles, strict=True):
        reference.check(one, handle, collected(handle))
    engine.check_empty()


def scored(one: Request) -> Request:
    """The same prompt, asked for the log-probability of each of its words."""
    words = tuple(min(i, CONFIG.vocab_size - 1) for i in one.prompt)  # a placeholder has no log-probability
    return dataclasses.replace(one, kind="score", prompt=words, params=SamplingParams(top_logprobs=20))


# -- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_of_some_sizes(runner, reference, layout):
    for size in (LONGEST, 13, 18, 23, 37, WHOLE):
        check_size(runner, reference, layout, size)


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_of_every_size(runner, reference, layout):
    for size in range(LONGEST, WHOLE):
        check_size(runner, reference, layout, size)


def check_size(runner, reference, layout: str, size: int) -> None:
    for one in (prompt(layout), scored(prompt(layout))):
        engine = new_engine(runner, chunk=size)
        check(engine, reference, one)
        ends = chunk_ends(engine)
        assert not any(span.start < end < span.end for span in one.spans for end in ends), "an image was cut"
        assert len(ends) >= LENGTH / size and ends[-1] == LENGTH


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_that_end_anywhere_but_in_an_image(runner, reference, layout, monkeypatch):
    """Ends that no page size would give, those just before and after every image among them."""
    one = prompt(layout)
    inside = {i for span in one.spans for i in range(span.start + 1, span.end)}
    places = sorted(set(range(1, LENGTH)) - inside)
    edges = sorted({edge for span in one.spans for edge in (span.start, span.end)} - {0, LENGTH})
    rng = random.Random(layout)
    for ends in (edges, places, *(sorted(rng.sample(places, rng.randint(1, 9))) for _ in range(4))):
        cut_at(monkeypatch, [*ends, LENGTH, *range(LENGTH + 1, CONTEXT)])
        check(new_engine(runner), reference, one)


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_beside_others(runner, reference, order):
    """Two with images, in chunks between the others' tokens, and one of text; whoever comes first."""
    text = request(np.random.default_rng(9).integers(0, CONFIG.vocab_size, 31).tolist(), ())
    ones = [prompt("middle", seed=1, key="x"), prompt("at the edges of pages", seed=2, key="y"), text]
    check(new_engine(runner, chunk=13), reference, *(ones[i] for i in order))


def test_the_same_image_in_two_prompts_at_once(runner, reference):
    """Other text before it, so nothing but the encoder's output may be shared; n answers of one share all."""
    check(new_engine(runner, chunk=16), reference, prompt("middle", seed=3), prompt("middle", seed=4, n=2))


# -- the prefix cache ------------------------------------------------------------------------------------------------

START, END = 20, 32  # of an image that is longer than a window


def with_tail(common: int, seed: int, key: str = "a") -> Request:
    """A prompt that has the first `common` tokens with all others of this kind, and one image."""
    ids = np.random.default_rng(5).integers(0, CONFIG.vocab_size, LENGTH)
    ids[common:] = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, LENGTH - common)
    return request(ids.tolist(), (image(START, END - START, key),))


def first_tokens(one: Request, count: int) -> Request:
    """The start of a prompt, as an earlier turn was: local layers can be resumed where a prompt ended."""
    spans = tuple(span for span in one.spans if span.end <= count)
    params = dataclasses.replace(one.params, max_tokens=1)
    return dataclasses.replace(one, prompt=one.prompt[:count], spans=spans, params=params)


@pytest.mark.parametrize("chunk", [LONGEST, 24, WHOLE])
@pytest.mark.parametrize(
    "end",
    [START - 3, START, END, END + 1, END + WINDOW + 3],
    ids=["before", "up to it", "its end", "one after", "a window after"],
)
def test_a_cached_prefix(runner, reference, end, chunk):
    """A prompt whose first tokens, up to one of the image's sides, are in the cache; two texts go on from there."""
    other = "a" if end > START else "b"  # else the image itself would be in the cache for the second
    engine, ones = new_engine(runner, chunk=chunk), [with_tail(end, 6), with_tail(end, 7, other)]
    engine.answer(first_tokens(ones[0], end))
    for one in ones:
        handle = engine.submit(one)
        engine.run_until_idle()
        reference.check(one, handle, collected(handle))
        assert handle.timings().cached_tokens == end
    engine.check_empty()


@pytest.mark.parametrize("chunk", [LONGEST, WHOLE])
def test_another_image_under_the_same_text(runner, reference, chunk):
    """Nothing from the image on may come from the cache, though all ids are the same."""
    engine, one, other = new_engine(runner, chunk=chunk), with_tail(LENGTH, 6), with_tail(LENGTH, 6, "b")
    assert one.prompt == other.prompt
    engine.answer(first_tokens(one, START))
    answers = []
    for asked, cached in ((one, START), (other, START), (one, LENGTH - 1), (other, LENGTH - 1)):
        handle = engine.submit(asked)
        engine.run_until_idle()
        answers.append(collected(handle))
        reference.check(asked, handle, answers[-1])
        assert handle.timings().cached_tokens == cached
    assert answers[0][0].logprob != answers[1][0].logprob
    engine.check_empty()


def test_a_second_turn(runner, reference):
    """The answer and a new question after it; the image is windows back by then."""
    engine, first = new_engine(runner, chunk=16), with_tail(LENGTH, 6)
    answer = [event.token_id for event in engine.answer(first)]
    ids = [*first.prompt, *answer, *np.random.default_rng(8).integers(0, CONFIG.vocab_size, 11).tolist()]
    second = request(ids, (*first.spans, image(len(ids) - 6, 5, "c")))
    handle = engine.submit(second)
    engine.run_until_idle()
    reference.check(second, handle, collected(handle))
    assert handle.timings().cached_tokens == len(first.prompt) + len(answer) - 1
    engine.check_empty()


# -- preemption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local_pages", [0, 30], ids=["computed again", "resumed from the cache"])
@pytest.mark.parametrize("after", [START, END, END + 3, LENGTH, LENGTH + 4])
def test_preempted_in_the_middle(runner, reference, after, local_pages, monkeypatch):
    """Everything is taken from a request when it has computed so many tokens; it goes on as if nothing had been."""
    cut_at(monkeypatch, [START, END, END + 3, LENGTH, *range(LENGTH + 1, CONTEXT)])
    engine, one = new_engine(runner, local_pages=local_pages), with_tail(LENGTH, 6)

    def between_steps() -> None:
        scheduler = engine._scheduler
        for entry in list(scheduler._queues.entries.values()):
            if entry.run.computed >= after and entry.run.ring is not None and not scheduler.preemptions:
                scheduler._composer.preempt(entry)

    engine.between_steps = between_steps
    check(engine, reference, one, dataclasses.replace(with_tail(3, 9, "b"), key="another"))
    assert engine.stats().preemptions == 1


def test_preempted_for_want_of_pages(runner, reference):
    """Pages for two prompts, and not for the answers of both."""
    engine = new_engine(runner, pages=2 * LENGTH // PAGE_SIZE + 1, chunk=16)
    check(engine, reference, *(prompt("middle", seed=i) for i in range(3)))
    assert engine.stats().preemptions > 0


# -- the comparisons can fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "one token"])
def test_a_causal_mask_gives_other_logits(reference, layout):
    """By much more than the comparisons allow, at the last token and in a local layer's window after the image."""
    one = prompt(layout)
    _, logits_TV = reference.states(one)
    # Images of one token each see nobody but who came before: the same embeddings under a causal mask.
    single = [
        SoftSpan(start=i, length=1, key=i, embed=lambda span=span, i=i: span.embed()[i - span.start :][:1])
        for span in one.spans
        for i in range(span.start, span.end)
    ]
    _, causal_TV = reference.states(dataclasses.replace(one, spans=tuple(single)))
    after = one.spans[0].start
    assert np.abs(logits_TV[:after] - causal_TV[:after]).max(initial=0) < 1e-5
    assert np.abs(logits_TV[-1] - causal_TV[-1]).max() > 0.02
    assert np.abs(logits_TV[after] - causal_TV[after]).max() > 0.3


def without_image_mask(row, spans, cache, columns):
    """Spoiled `soft_tokens`: right embeddings under a causal mask."""
    from gemworks.engine.spans import soft_tokens

    soft, _ = soft_tokens(row, spans, cache, columns)
    return soft, list(range(row.start, row.start + row.count))


@pytest.mark.parametrize("layout", ["middle", "last", "two in one window"])
def test_a_causal_mask_in_the_engine_would_be_seen(runner, reference, layout, monkeypatch):
    monkeypatch.setattr("gemworks.engine.engine.soft_tokens", without_image_mask)
    with pytest.raises(AssertionError):
        check(new_engine(runner), reference, prompt(layout))


def test_a_chunk_that_cuts_an_image_would_be_seen(runner, reference, monkeypatch):
    """Its rows do not fit, or its first tokens do not see its last."""
    cut_at(monkeypatch, [23, LENGTH, *range(LENGTH + 1, CONTEXT)])
    with pytest.raises((AssertionError, ValueError)):
        check(new_engine(runner), reference, prompt("middle"))


def test_a_key_that_names_two_images_would_be_seen(runner, reference):
    """The cache trusts keys: this is what it would give if they lied."""
    engine = new_engine(runner)
    one = with_tail(LENGTH, 6)
    other = dataclasses.replace(one, spans=(dataclasses.replace(one.spans[0], embed=image(START, 12, "b").embed),))
    engine.answer(one)
    with pytest.raises(AssertionError):
        check(engine, reference, other)
