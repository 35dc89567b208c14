"""The prefix cache: what is found again, how far it reaches back, what is evicted, and that reads stay right."""

import pytest
from device_model import VOCAB, Harness
from hypothesis import given
from hypothesis import strategies as st

from gemworks.engine.pages import PagePool
from gemworks.engine.plan import CopyPage, Limits, LoadRing, LocalPage, Run
from gemworks.engine.prefix import PrefixCache, units_of
from gemworks.engine.types import Request, SamplingParams, SoftSpan

SIZE = 4


def limits(window: int | None = 8, slots: int = 8, **changes) -> Limits:
    sizes = dict(max_sequences=4, context=256, page_size=SIZE, window=window, slots=slots, chunks=(4, 8))
    return Limits(**sizes | changes)


def harness(window: int | None = 8, slots: int = 8, num_pages: int = 200, num_local: int | None = 100, **changes):
    return Harness(limits(window, slots, **changes), num_pages=num_pages, num_local=num_local)


def request(prompt, answer: int = 1, **changes) -> Request:
    return Request(prompt=tuple(prompt), params=SamplingParams(max_tokens=answer), **changes)


def ask(engine: Harness, *args, **changes) -> Run:
    [run] = engine.submit(request(*args, **changes))
    engine.run_all()
    return run


def text(length: int, seed: int = 1) -> list[int]:
    return [(i * i * seed + 5 * i + seed) % VOCAB for i in range(length)]


def new_run(prompt, **changes) -> Run:
    return Run(request(prompt, **changes), 0, list(prompt), 1, 0)


# -- the tree by itself ----------------------------------------------------------------------------------------------


def tree(tokens: list[int], *, window: int | None, covered: set[int]) -> tuple[PrefixCache, PagePool]:
    """Return a cache that holds `tokens`, with local pages at the page indices in `covered`."""
    pages, local = PagePool(100, SIZE), PagePool(100, SIZE)
    cache = PrefixCache(pages, local, window=window)
    run, node = new_run(tokens), cache.root(None)
    for start in range(0, len(tokens), SIZE):
        [page] = pages.take(1)
        node = cache.add(node, units_of(run, start, min(start + SIZE, len(tokens))), page)
        pages.release([page])
        if start // SIZE in covered:
            assert cache.take_local(node, [])
            node.local_start, node.local_end = 0, len(node.units)
    cache.touch(node)
    cache.audit()
    return cache, pages


@given(st.integers(1, 30), st.integers(0, 30), st.sampled_from([None, 1, 2, 4, 5, 8, 11]), st.sets(st.integers(0, 7)))
def test_longest_usable_prefix_is_found(stored, longest, window, covered):
    """Against every length tried in turn: pages up to it, and local pages over [length - window + 1, length)."""
    tokens = text(30)
    cache, _ = tree(tokens[:stored], window=window, covered=covered)

    def usable(length: int) -> bool:
        reads = range(max(0, length - window + 1), length) if window else ()
        return length <= stored and all(position // SIZE in covered for position in reads)

    expected = max(length for length in range(longest + 1) if usable(length))
    hit = cache.find(new_run(tokens), longest)
    assert hit.length == expected
    assert len(hit.nodes) == expected // SIZE and (hit.tail is None) == (expected % SIZE == 0)
    loaded = {local.index * SIZE + i for local in hit.local for i in range(local.count)}
    assert loaded >= set(range(max(0, expected - window + 1), expected) if window else ())
    assert [local.index for local in hit.local] == sorted(local.index for local in hit.local), "the oldest is not first"
    cache.audit()


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=12), st.data())
def test_tree_of_many_texts_finds_the_longest_common_beginning(texts, data):
    """Without local layers it is the longest common prefix with any text; siblings are so few that all are seen."""
    pages = PagePool(400, SIZE)
    cache = PrefixCache(pages, None, window=None)
    for tokens in texts:
        run, node = new_run(tokens), cache.root(None)
        for start in range(0, len(tokens), SIZE):
            units = units_of(run, start, min(start + SIZE, len(tokens)))
            if units not in node.children:
                [page] = pages.take(1)
                cache.add(node, units, page)
                pages.release([page])
            node = node.children[units]
        cache.touch(node)
        cache.audit()
    wanted = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=14))

    def common(tokens: list[int]) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(tokens, wanted, strict=False)) if a != b), min(len(tokens), len(wanted))
        )

    assert cache.find(new_run(wanted), len(wanted)).length == max(map(common, texts))


def test_leaves_go_first_and_the_least_used_of_them():
    cache, pages = tree(text(12), window=None, covered=set())
    other, node = text(8, seed=2), cache.root(None)
    for start in (0, 4):
        [page] = pages.take(1)
        node = cache.add(node, units_of(new_run(other), start, start + 4), page)
        pages.release([page])
    cache.touch(node)
    cache.find(new_run(text(12)), 12)  # used now, the other before
    assert cache.make_room(pages.num_free + 2)
    assert cache.find(new_run(other), 8).length == 0
    assert cache.make_room(pages.num_free + 1)
    assert cache.find(new_run(text(12)), 12).length == 8
    cache.audit()


def test_pages_in_use_are_not_evicted_and_a_hopeless_wish_evicts_nothing():
    cache, pages = tree(text(12), window=None, covered=set())
    used = [node.page for node in cache.find(new_run(text(12)), 8).nodes]
    pages.share(used)
    free = pages.num_free
    assert not cache.make_room(free + 2)
    assert pages.num_free == free and len(cache) == 3
    assert cache.make_room(free + 1)
    assert cache.find(new_run(text(12)), 12).length == 8


def test_an_image_is_told_by_its_key_not_by_its_placeholders():
    cache = PrefixCache(PagePool(20, SIZE), None, window=None)

    def spans(key):
        return (SoftSpan(start=2, length=3, key=key, embed=lambda: None),)

    run = new_run([5, 6, 0, 0, 0, 7, 8, 9], spans=spans("cat"))
    assert units_of(run, 0, 4) == (5, 6, ("cat", 0), ("cat", 1)) and units_of(run, 4, 8) == (("cat", 2), 7, 8, 9)
    node = cache.root(None)
    for start in (0, 4):
        [page] = cache._pages.take(1)
        node = cache.add(node, units_of(run, start, start + 4), page)
    assert cache.find(run, 8).length == 8
    assert cache.find(run, 4).length == 2, "a prefix ends inside an image"
    assert cache.find(new_run(run.tokens, spans=spans("dog")), 8).length == 2
    assert cache.find(new_run(run.tokens), 8).length == 2
    assert cache.find(new_run(run.tokens, spans=spans("cat"), adapter="x"), 8).length == 0


# -- through the scheduler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [8, 12, 24])
@pytest.mark.parametrize("window", [None, 2, 5, 8])
def test_chat_of_20_turns_computes_only_what_is_new(window, slots):
    """Past the window many times; the ring has no spare slot in the tightest case."""
    engine = harness(window, slots, context=512, num_pages=300)
    chat, stored = text(9), 0
    for turn in range(20):
        before = engine.tokens
        run = ask(engine, chat, answer=3 + turn % 6)
        # The last token of an answer was drawn, never computed.
        assert engine.tokens - before == len(run.tokens) - 1 - stored, f"turn {turn}"
        assert run.cached_tokens == stored
        stored = len(run.tokens) - 1
        chat = run.tokens + text(1 + turn % 5, seed=turn)
    assert len(chat) > 20 * 8
    engine.check_empty()


@pytest.mark.parametrize("length", range(1, 30))
def test_same_prompt_again_computes_one_token(length):
    engine = harness()
    ask(engine, text(length))
    before = engine.tokens
    run = ask(engine, text(length))
    assert engine.tokens - before == 1 and run.cached_tokens == length - 1


def test_shared_beginning_is_found_at_any_token():
    for common in range(1, 40):
        engine = harness()
        ask(engine, text(48))
        run = ask(engine, [*text(common), *((token + 1) % VOCAB for token in text(48)[common:])])
        assert run.cached_tokens == common


@pytest.mark.parametrize("answer", range(1, 21))
@pytest.mark.parametrize("length", [40, 41, 43])
def test_another_question_finds_the_prompt_whatever_was_answered_before(length, answer):
    """An answer longer than the window ends with a ring that has only a part of the prompt's last page."""
    engine = harness()
    run = ask(engine, [*text(length), 5], answer=answer)
    assert ask(engine, [*text(length), 9]).cached_tokens == length
    assert ask(engine, [*run.tokens, 3]).cached_tokens == len(run.tokens) - 1
    engine.check_empty()


def test_prefix_is_shared_while_the_first_is_still_computed():
    engine = harness()
    [first] = engine.submit(request(text(60)))
    engine.step()
    engine.step()
    assert first.computed == 16
    [second] = engine.submit(request([*text(15), *((token + 1) % VOCAB for token in text(9))], key="other"))
    engine.run_all()
    assert second.cached_tokens == 15


def test_hit_inside_a_page_copies_it_and_loads_the_last_window():
    engine = harness()
    ask(engine, text(21))
    [run] = engine.submit(request([*text(18), 1, 2]))
    plan = engine.scheduler.schedule(0.0)
    copy, load = plan.before[-2:]
    assert isinstance(copy, CopyPage) and copy.target == run.table[4] and copy.source not in run.table
    # Token 18 reads positions 11 to 17: pages 2 to 4.
    assert isinstance(load, LoadRing) and load.ring == run.ring
    assert [(local.index, local.count) for local in load.pages] == [(2, 4), (3, 4), (4, 2)]
    assert isinstance(load.pages[0], LocalPage)
    engine.launch(plan)
    engine.run_all()


def test_without_local_pages_nothing_is_reused_where_there_are_local_layers():
    engine = harness(num_local=None)
    ask(engine, text(20))
    assert ask(engine, text(20)).cached_tokens == 0
    engine = harness(window=None, num_local=None)
    ask(engine, text(20))
    assert ask(engine, text(20)).cached_tokens == 19


def test_lost_local_pages_cost_recomputing_not_wrong_reads():
    """With local pages for one window only, older boundaries are gone, the newest still is there."""
    engine = harness(num_local=4)
    ask(engine, text(40))
    assert ask(engine, [*text(40), 1]).cached_tokens == 40
    ask(engine, text(40, seed=3))
    assert ask(engine, [*text(40), 2]).cached_tokens == 0
    engine.check_empty()


def test_ring_is_not_believed_to_hold_what_it_was_not_given():
    """A ring with spare slots that began with a kept window holds that window, not all its slots before it."""
    engine = harness(window=4, slots=16)
    ask(engine, text(24))
    cache = engine.scheduler._alloc.cache
    [last] = cache.find(new_run(text(24)), 24).local  # positions 21 to 23
    for node in [node for node in cache._local_used if node.local != last.page]:
        cache.drop_local(node)
    ask(engine, text(40, seed=3), use_cache=False)  # the ring that is used next holds something else
    run = ask(engine, [*text(24), *text(12, seed=2)])
    assert run.cached_tokens == 24
    engine.device.check_cache(engine.scheduler)
    ask(engine, [*text(20), 1, 2, 3])
    engine.check_empty()


def test_score_and_embed_take_no_more_than_they_may():
    engine = harness()
    ask(engine, text(30))
    assert ask(engine, text(30), kind="score", score_from=11).cached_tokens == 10
    assert ask(engine, text(30), kind="embed").cached_tokens == 0
    assert ask(engine, text(30), use_cache=False).cached_tokens == 0


def test_use_cache_false_leaves_nothing_behind():
    engine = harness()
    ask(engine, text(30), use_cache=False)
    assert engine.scheduler.cached_pages == 0 and ask(engine, text(30)).cached_tokens == 0


def test_preempted_run_computes_nothing_again_while_its_pages_are_kept():
    engine = harness(max_sequences=1)
    [slow] = engine.submit(request(text(20), answer=40, key="slow"))
    for _ in range(10):
        engine.step()
    entry = engine.scheduler._queues.entries[slow]
    computed = engine.tokens
    engine.scheduler._composer.preempt(entry)
    engine.run_all()
    assert engine.tokens == 20 + 39 and computed < engine.tokens


@pytest.mark.parametrize("name", ["page", "ring", "local page"])
def test_device_model_sees_a_wrong_read(name):
    """The checks of these tests can fail: one wrong mark in a place that is read."""
    engine = harness()
    [run] = engine.submit(request(text(20), answer=9))
    while run.computed < 20:
        engine.step()
    if name == "page":
        engine.device.pages[run.table[1]][2] = 12345
    elif name == "ring":
        engine.device.rings[run.ring][17 % 8] = 12345
    else:
        engine.run_all()
        engine.device.local = [[12345] * SIZE for _ in engine.device.local]
        engine.submit(request(text(20)))
    with pytest.raises(AssertionError):
        engine.run_all()
