"""The embedded model answers, and answers as transformers does (golden.json, made by make_golden.py)."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import LLM
from gemworks.model.gemma3 import full_batch
from gemworks.tokenizer import Tokenizer, render_chat, render_plain
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import load_model

MODEL = Path(__file__).parents[3] / "gemworks" / "assets" / "tiny"
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
CASES = GOLDEN["cases"]
NAMES = [case["messages"][-1]["content"] if "messages" in case else case["text"] for case in CASES]

# Right answers by anybody's reckoning, whatever transformers says; the first is what `make run` asks. Of what the model
# does well: its card gives the shares, and counting (17 %) and repeating (33 %) are not among it.
KNOWN = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Hello!": "Hello! How can I help you?",
    "What is 12 + 34?": "12 + 34 = 46.",
    "What is 9 - 4?": "9 - 4 = 5.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What colour is the sky?": "The sky is blue.",
    "Which day comes after Monday?": "Tuesday comes after Monday.",
    "Spell cat.": "c-a-t",
}


@pytest.fixture(scope="module")
def llm():
    return LLM(MODEL)


@pytest.fixture(scope="module")
def exact_llm():
    return LLM(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(MODEL)


def prompt_ids(case, tokenizer) -> list[int]:
    if "messages" in case:
        return render_chat(tokenizer, case["messages"])
    return render_plain(tokenizer, case["text"])


def test_golden_is_of_these_weights():
    found = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert found == GOLDEN["weights_sha256"], "the model was trained anew: run tests/golden/tiny/make_golden.py"


def test_files_are_small():
    """It travels in every wheel."""
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 2_000_000


def test_a_case_is_longer_than_three_windows():
    with open_checkpoint(MODEL) as checkpoint:
        window = checkpoint.config.local_spec.window
    assert max(len(case["prompt_ids"]) for case in CASES) > 3 * window


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_prompt_ids_are_transformers(case, tokenizer):
    assert prompt_ids(case, tokenizer) == case["prompt_ids"]


def test_logits_are_transformers():
    """Of the whole prompt at once, without a cache: 2e-4 in fp32."""
    with open_checkpoint(MODEL) as checkpoint:
        model = load_model(checkpoint, dtype="float32")
    length = max(len(case["prompt_ids"]) for case in CASES)

    @jax.jit
    def last_logits(model, ids_T, last):
        h_TD, _ = model(full_batch(ids_T, model.config))  # what is behind `last` is not seen
        return model.logits(h_TD[last][None])[0]

    for case in CASES:
        ids = case["prompt_ids"]
        padded = jnp.asarray(ids + [0] * (length - len(ids)))
        logits_V = last_logits(model, padded, len(ids) - 1)
        np.testing.assert_allclose(logits_V[:: GOLDEN["logit_every"]], case["last_logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_greedy_answers_are_transformers(case, exact_llm):
    """Through rings and pages, in fp32: the same ids."""
    answer = exact_llm.generate(case["prompt_ids"], max_tokens=max(len(case["answer_ids"]), 1), temperature=0)
    assert answer.token_ids == case["answer_ids"]
    assert answer.text == case["answer"]


@pytest.mark.parametrize(("question", "answer"), KNOWN.items(), ids=str)
def test_answers_as_shipped(llm, question, answer):
    """In bf16 and with the model's own generation defaults: what a user sees."""
    got = llm.chat([{"role": "user", "content": question}])
    assert got.text == answer
    assert got.finish_reason == "stop"


def test_second_turn_knows_the_first(llm):
    messages = [{"role": "user", "content": "What is the opposite of hot?"}]
    messages.append({"role": "assistant", "content": llm.chat(messages).text})
    messages.append({"role": "user", "content": "And of big?"})
    assert llm.chat(messages).text == "The opposite of big is small."


def test_says_what_it_is(llm):
    answer = llm.chat([{"role": "user", "content": "Who are you?"}]).text
    assert answer.startswith("I am tiny, a demonstration model")
