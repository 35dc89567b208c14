"""The compiled step: its control vector, tokens that only the device knows, and which programs there are."""

import numpy as np
import pytest
from driven_engine import CONFIG, DrivenEngine, Reference, collected, greedy, model, new_runner, resized
from random_mixes import Mix
from small_models import random_ids

from gemworks.engine.runner import row_input
from gemworks.engine.sampler import RowSampler, row_params
from gemworks.engine.scheduler import Scheduler
from gemworks.engine.step import FROM_DEVICE, RowInput, StepShape, layout, pack
from gemworks.engine.types import SamplingParams


@pytest.fixture(scope="module")
def runner():
    return new_runner(model(), sequences=2, chunks=(8,))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(model())


def test_control_vector_holds_every_field_in_its_place():
    shape = StepShape(rows=2, columns=2, chunk=4, table_width=3, soft=True)
    decode = [RowInput([5, 6], 7, 1, [9, 8, 7], slot=2), RowInput([FROM_DEVICE], 3, 0, [4])]
    prefill = RowInput([1, 2, 3], 10, 2, [6, 5, 4], see=[12, 12, 12])
    params = SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=(3 << 32) + 4)
    sampler = RowSampler(params, (), vocab=100)
    given = row_params([sampler, sampler, None, None, sampler], [0, 1, 0, 0, 2])
    control = pack(shape, decode, prefill, given)
    places, length = layout(shape)
    assert length == len(control) == sum(np.prod(dims, dtype=int) for _, dims in places.values())
    got = {name: control[where].reshape(dims) for name, (where, dims) in places.items()}
    expected = {
        "draw": 1,
        "decode_start": [7, 3],
        "decode_count": [2, 1],
        "decode_ring": [1, 0],
        "decode_slot": [2, 0],
        "decode_table": [[9, 8, 7], [4, 0, 0]],
        "decode_ids": [[5, 6], [FROM_DEVICE, 0]],
        "prefill_start": [10],
        "prefill_count": [3],
        "prefill_ring": [2],
        "prefill_slot": [0],
        "prefill_table": [[6, 5, 4]],
        "prefill_ids": [[1, 2, 3, 0]],
        "prefill_see": [[12, 12, 12, 13]],
        "top_k": [5, 5, 1, 1, 5],
        "seed_high": [3, 3, 0, 0, 3],
        "seed_low": [4, 4, 0, 0, 4],
        "index": [0, 1, 0, 0, 2],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(got.pop(name), value, err_msg=name)
    for name, value in (("temperature", 0.7), ("top_p", 0.9), ("min_p", 0.1)):
        np.testing.assert_array_equal(got.pop(name).view(np.float32)[[0, 1, 4]], np.float32(value))
    assert not got
    assert pack(shape, decode, prefill, None)[0] == 0, "nothing is drawn"


def test_steps_launched_before_the_last_was_read_take_its_token_from_the_device(runner, reference):
    """Two steps on their way at once; the host does not know the token between them."""
    resized(runner, local_pages=30, chunks=(8,))
    scheduler = Scheduler(runner.limits, pages=runner.pages, rings=runner.rings)
    request = greedy(random_ids(CONFIG, 6), 9, use_cache=False)
    [run] = scheduler.submit(request, 0)
    run.sampler = RowSampler(request.params, request.prompt, vocab=runner.vocab)
    while len(run.answer) < 9:
        plan = scheduler.schedule(0.0)
        pending = runner.launch(plan)
        scheduler.launched(plan)
        ahead = scheduler.schedule(0.0)
        if ahead is not None:
            [row] = ahead.rows
            assert row.start == len(run.tokens) and row_input(row).ids == [FROM_DEVICE]
            second = runner.launch(ahead)
            scheduler.launched(ahead)
        for one, of in ((pending, plan), (second, ahead)) if ahead is not None else ((pending, plan),):
            [[result]] = one.read()
            scheduler.complete(of.rows[0], [result.token_id])
            run.sampler.note(result.token_id)
    _, logits_TV = reference.states(request, run.answer)
    assert run.answer == logits_TV[5:-1].argmax(axis=1).tolist()


def test_nothing_compiles_after_warm_up(runner, reference):
    """Whatever is asked, but for images and adapters, finds its program ready."""
    resized(runner, local_pages=30, chunks=(8,))
    calls = []
    runner.warm_up(lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    made = runner.num_compiled
    for number in range(4000, 4012):
        mix = Mix(number)
        mix.has_adapters = mix.has_images = False
        mix.sequences, mix.chunks, mix.local_pages = 2, (8,), 30
        engine = mix.run(runner)
        for request, handle in mix.asked:
            reference.check(request, handle, collected(handle))
        assert runner.num_compiled == made, f"mix {number}"
        engine.check_empty()


def test_warm_up_disturbs_no_sequence(runner, reference):
    engine = DrivenEngine(resized(runner, local_pages=30, chunks=(8,)))
    first = greedy(random_ids(CONFIG, 30), 5)
    engine.answer(first)
    runner.warm_up()
    again = engine.submit(first)
    engine.run_until_idle()
    assert reference.check(first, again, collected(again)) == 5
    assert again.timings().cached_tokens == 29
