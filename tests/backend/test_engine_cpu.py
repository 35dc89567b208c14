"""An engine on the CPU kernels, a packed int4 model: every answer of a mix is that of the request alone."""

import dataclasses

import jax
import numpy as np
import pytest
from driven_engine import LAYERS, DrivenEngine, collected, new_runner, resized
from random_mixes import Mix
from small_models import random_arrays, random_ids, small_config

from gemworks.engine.handle import Handle
from gemworks.engine.types import Request, SamplingParams, TokenEvent
from gemworks.model.gemma3 import build
from gemworks.ops import layout, select
from gemworks.ops.weight import PackedWeight
from gemworks.quant.rtn import quantize

if "cpu" not in select.available():
    pytest.skip("no CPU kernels here: see gemworks doctor", allow_module_level=True)

CONFIG = small_config(layers=LAYERS, head_dim=32, model_dim=64)

# Largest difference of a log-probability, measured 9.5e-7 at most. Not for mixes on bfloat16 where the CPU multiplies
# pairs of bf16: chunks round queries and weights there, so a token that is computed in a chunk after a preemption, or
# alone after a cached prefix, moves by up to 0.04, and 12 of 107 answers of random weights were others (numerics.md).
BOUND = 5e-6

# Rarely an activation lies between two of its 255 steps so closely that a sum in another order turns it: an embedding
# of the mixes below moved by 1.6e-4 once. Which steps share rows depends on how long they take.
TURNED = 5e-3


def packed_model():
    """Return a model of int4 matrices and an int8 table, laid out for the kernels."""
    arrays = random_arrays(CONFIG)

    def leaf(name: str, shape: tuple[int, ...]):
        if len(shape) == 1:
            return jax.device_put(arrays[name])
        weight = quantize(arrays[name], "int8" if name == "embed.weight" else "int4-b32", name=name)
        return PackedWeight(jax.device_put(layout.pack(weight)), weight.format, weight.shape)

    return build(CONFIG, leaf)


def alone(runner, request: Request) -> tuple[Handle, list[TokenEvent]]:
    """Return what a fresh engine with one sequence and no prefix cache gives."""
    engine = DrivenEngine(resized(runner, sequences=1, local_pages=0))
    handle = engine.submit(dataclasses.replace(request, n=1, deadline_s=None))
    engine.run_until_idle()
    return handle, collected(handle)


def test_mixes_are_the_requests_alone():
    """Every token; log-probabilities to rounding: the kernels for one column and for many add in another order."""
    runner = new_runner(packed_model(), kv_dtype="float32")
    compared, differences = 0, []
    for number in range(3000, 3008):
        mix = Mix(number)
        mix.has_adapters = mix.has_images = False
        mix.run(runner)
        for request, handle in mix.asked:
            events = collected(handle)
            if {event.finish_reason for event in events} & {"cancelled", "deadline"}:
                continue
            for i in range(request.n):
                told = {}
                if request.kind == "generate":
                    told["params"] = dataclasses.replace(request.params, seed=request.params.seed + i)
                got = [event for event in events if event.index == i]
                other, wanted = alone(runner, dataclasses.replace(request, **told))
                ends = [[(event.token_id, event.finish_reason) for event in some] for some in (got, wanted)]
                assert ends[0] == ends[1], f"mix {number}, {request.name}"
                pairs = [(a.logprob, b.logprob) for a, b in zip(got, wanted, strict=True)]
                pairs += zip(handle.scores or (), other.scores or (), strict=True)
                differences += [abs(a.logprob - b.logprob) for a, b in pairs if a is not None]
                if request.kind == "embed":
                    np.testing.assert_allclose(handle.embedding, other.embedding, atol=TURNED)
                compared += len(got)
    assert compared > 150 and len(differences) > 10
    assert max(differences) < TURNED
    assert np.quantile(differences, 0.9) < BOUND


@pytest.mark.parametrize(("kv_dtype", "bound"), [("float32", BOUND), ("int8", BOUND), ("bfloat16", 0.1)])
def test_a_cached_prefix_costs_no_more_than_rounding(kv_dtype, bound):
    """Log-probabilities of a text whose beginning was in the prefix cache, against the whole text computed at once."""
    runner = new_runner(packed_model(), kv_dtype=kv_dtype)
    ids = random_ids(CONFIG, 80)
    expected, _ = alone(runner, Request(prompt=tuple(ids), kind="score"))
    engine = DrivenEngine(resized(runner, local_pages=30))
    differences = []
    for length in (3, 8, 21, 40, 61):
        engine.answer(Request(prompt=tuple(ids[:length]), params=SamplingParams(max_tokens=1)))
        handle = engine.submit(Request(prompt=tuple(ids), kind="score", score_from=length + 1))
        engine.run_until_idle()
        collected(handle)
        assert handle.timings().cached_tokens == length
        pairs = zip(handle.scores[length + 1 :], expected.scores[length + 1 :], strict=True)
        differences += [abs(a.logprob - b.logprob) for a, b in pairs]
    assert max(differences) < bound
