"""llama.cpp runs the files that `gemworks quantize` writes and gives the answers that we give from the same weights.

The embedded model is trained, so its best token is seldom a near tie: llama.cpp's activations are rounded to 8 bits.
"""

import random

import numpy as np
import pytest

from gemworks import LLM
from gemworks.quant.calibration import Calibration, cut_into_chunks
from gemworks.quant.plan import QuantPlan
from gemworks.tokenizer.chat import render_chat
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights import hub
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.quantize import check_request, write_quantized
from recipes.tiny_standin import stories

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

# llama.cpp logs hundreds of lines a file.
_QUIET = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(_QUIET, None)

QUESTIONS = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What colour is a lemon?",
    "Which day comes after Monday?",
    "Hello!",
    "Who are you?",
)


def written(path, method: str):
    """The embedded model as `path` in Q4_0 and Q8_0, rounded or calibrated on texts of its own grammar."""
    plan = QuantPlan.parse("int4-b32", "int8-b32")
    with open_checkpoint(hub.TINY) as checkpoint:
        make = None
        if method == "gptq":
            rng = random.Random(0)
            ids = Tokenizer.load(hub.TINY).encode("\n\n".join(stories.plain_text(rng) for _ in range(60)))
            chunks = cut_into_chunks(ids, 2, length=160, count=32)
            formats = check_request(checkpoint, path, plan)
            calibrated = Calibration(checkpoint.config, checkpoint.read, formats, chunks)
            make = lambda name, _: calibrated.quantized(name)  # noqa: E731
        write_quantized(checkpoint, path, plan, produce=make)
    return path


def greedy(path, prompt: list[int], count: int) -> list[int]:
    model = llama_cpp.Llama(
        model_path=str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=True
    )
    answer: list[int] = []
    while len(answer) < count:
        model.eval(answer[-1:] or prompt)
        answer.append(int(np.asarray(model.scores[model.n_tokens - 1]).argmax()))
    model.close()
    return answer


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_llama_cpp_answers_as_we_do(tmp_path, method):
    path = written(tmp_path / "m.gguf", method)
    floats, quantized = LLM(path, dtype="float32"), LLM(path)
    compared = 0
    for question in QUESTIONS:
        prompt = render_chat(floats.tokenizer, [{"role": "user", "content": question}])
        ours = floats.generate(prompt, temperature=0, max_tokens=24).token_ids
        assert quantized.generate(prompt, temperature=0, max_tokens=24).token_ids == ours
        assert greedy(path, prompt, len(ours)) == ours, question
        compared += len(ours)
    assert compared > 40
