"""The decoder against logits and answers that transformers gave (make_golden.py), with no torch installed."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_ids, random_model, small_config

from gemworks.engine.engine import Engine
from gemworks.engine.runner import Runner
from gemworks.engine.types import Request, SamplingParams
from gemworks.model.gemma3 import full_batch

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))["cases"]

spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
make_golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_golden)


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_answer_are_those_of_transformers(name):
    config = small_config(**make_golden.CASES[name])
    model = random_model(config, make_golden.SEED)
    ids = random_ids(config, make_golden.PROMPT, make_golden.SEED)
    h_TD, _ = model(full_batch(jnp.asarray(ids, jnp.int32), config))
    logits = np.asarray(model.logits(h_TD))[:, : make_golden.COLUMNS]
    np.testing.assert_allclose(logits, GOLDEN[name]["logits"], atol=2e-4)
    params = SamplingParams(temperature=0.0, max_tokens=make_golden.ANSWER)
    handle = Engine(Runner(model, context=64)).submit(Request(prompt=tuple(ids), params=params))
    assert [event.token_id for event in handle] == GOLDEN[name]["answer"]
