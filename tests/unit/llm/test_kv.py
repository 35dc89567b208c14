"""LLM(kv=...): what keys and values are stored as."""

import jax
import numpy as np
import pytest

from gemworks import LLM
from gemworks.errors import ConfigError

# An answer that the model is sure of: one byte a number may turn a near tie.
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_int8_keys_and_values_reach_the_cache_and_answer_alike():
    answers, sizes = [], []
    for kv in (None, "int8"):
        llm = LLM("tiny", context=128, kv=kv)
        answers.append(llm.chat(QUESTION, max_tokens=16, temperature=0).text)
        sizes.append(sum(np.asarray(x).nbytes for x in jax.tree.leaves(llm._engine._runner._kv)))
    assert answers[0] == answers[1] and "Paris" in answers[0]
    # fp32 or bf16 numbers against one byte and a share of a scale
    assert sizes[1] < 0.6 * sizes[0]


def test_an_unknown_type_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match='kv must be one of bfloat16, int8, float32, got "int4"'):
        LLM("no such model", kv="int4")
