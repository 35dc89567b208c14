"""LLM(draft=...) changes speed and no text; LLM(adapter=...) and load_adapter change the text of who asks for it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gemworks import LLM
from gemworks.errors import ConfigError, RequestError
from gemworks.model.lora import target_shape

CONVERSATION = [{"role": "user", "content": "Say it again: one two three four, one two three four, one two."}]
ASKED = ({"temperature": 0.0}, {"seed": 3}, {"seed": 4, "temperature": 1.5, "top_k": 20})


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", context=256)


@pytest.fixture(scope="module")
def adapter(llm, tmp_path_factory):
    """A PEFT directory that turns the attention of every layer upside down."""
    folder = tmp_path_factory.mktemp("upside-down")
    rng, stored = np.random.default_rng(0), {}
    F, D = target_shape(llm.config, "o")
    for layer in range(len(llm.config.layers)):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        stored[f"{name}.lora_A.weight"] = rng.normal(size=(2, D)).astype(np.float32)
        stored[f"{name}.lora_B.weight"] = rng.normal(size=(F, 2)).astype(np.float32)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(stored, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("draft", ["lookup", "tiny"])
def test_drafts_change_no_text(llm, draft):
    guessing = LLM("tiny", context=256, draft=draft)
    for asked in ASKED:
        expected = llm.chat(CONVERSATION, max_tokens=60, **asked)
        assert guessing.chat(CONVERSATION, max_tokens=60, **asked).token_ids == expected.token_ids
    if draft == "tiny":  # a model that guesses what it draws itself is mostly right
        stats = guessing._engine.stats()
        assert stats.drafts_accepted > 0


def test_a_drafting_model_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no-such-model"):
        LLM("tiny", draft="no-such-model")


def test_an_adapter_is_for_those_who_ask_for_it(llm, adapter):
    plain = llm.generate("Once upon a time", max_tokens=12, temperature=0.0).text
    name = llm.load_adapter(adapter)
    changed = llm.generate("Once upon a time", max_tokens=12, temperature=0.0, adapter=name).text
    assert changed != plain
    assert llm.generate("Once upon a time", max_tokens=12, temperature=0.0).text == plain
    always = LLM("tiny", context=256, adapter=adapter)
    assert always.generate("Once upon a time", max_tokens=12, temperature=0.0).text == changed
    free = llm._engine.stats().pages_free
    llm.unload_adapter(name)
    assert llm._engine.stats().pages_free > free, "keys and values of an adapter that is gone are kept"
    with pytest.raises(RequestError, match=f'no adapter named "{name}"'):
        llm.generate("Once upon a time", adapter=name)
