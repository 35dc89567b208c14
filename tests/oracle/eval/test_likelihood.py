"""Perplexity, bits per byte and choices of a small random model against transformers, from the text on."""

import json
import math
import shutil

import pytest
import torch
from hf_models import Shape, configs
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast

from gemworks import LLM
from gemworks.eval import evaluate, read_task
from gemworks.weights.hub import TINY

SHAPE = Shape(heads=2, kv_heads=1, head_dim=16, dim=32, layers=6, window=16, factor=1.0, scalar=16)
TEXTS = [
    "The river was low that year, and the mill stood still.",
    "Zwei und zwei sind vier; caf\u00e9, na\u00efve, \u6771\u4eac. " * 12,
    "for i in range(10):\n    print(i)\n" * 6,
]
QUESTIONS = [
    {"context": "The capital of France is", "choices": [" Paris.", " a cat.", " not known to me"], "answer": 0},
    {"context": "One, two, three,", "choices": [" four", " blue", " and then some"], "answer": 0},
    {"context": "Water is", "choices": [" wet", "colour", " a very long way off"], "answer": 1},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(ours, theirs, their tokenizer) of one random model in fp32."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TINY / "tokenizer.json"))
    assert tokenizer.convert_ids_to_tokens(len(tokenizer) - 1) == "<image_soft_token>"
    torch.manual_seed(0)
    theirs = Gemma3ForCausalLM(configs(SHAPE, len(tokenizer))[0]).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(3.0)  # away from a flat distribution
    theirs.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    ours = LLM(folder, dtype="float32", context=128)
    yield ours, theirs, tokenizer
    ours.close()


def logprobs(model, ids):
    """Log-probability of each token after the first, in a forward pass of transformers."""
    with torch.no_grad():
        # The last piece stands for images: it can never be drawn, and has no part of the probabilities here.
        logits = model(torch.tensor([ids])).logits[0, :, :-1].double()
    picked = torch.log_softmax(logits[:-1], dim=-1)
    return [picked[i, token].item() for i, token in enumerate(ids[1:])]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("window", "stride"), [(128, 64), (48, 16)])
def test_perplexity(pair, tmp_path, window, stride):
    ours, theirs, tokenizer = pair
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    settings = f'kind = "perplexity"\ndata = "data.jsonl"\nwindow = {window}\nstride = {stride}\n'
    (tmp_path / "task.toml").write_text(settings)
    result = evaluate(ours, read_task(tmp_path / "task.toml"), model="x")
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids, done = [2, *ids_of(tokenizer, text)], 1
        while done < len(ids):
            end = min(len(ids), window if done == 1 else done + stride)
            scores = logprobs(theirs, ids[max(0, end - window) : end])
            nats -= sum(scores[-(end - done) :])
            tokens += end - done
            done = end
    bits, perplexity = (figure.value for figure in result.figures)
    assert tokens == sum(record["tokens"] for record in result.records) > 128
    assert perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert bits == pytest.approx(nats / math.log(2) / sum(len(text.encode()) for text in TEXTS), rel=1e-5)


def test_choices(pair, tmp_path):
    ours, theirs, tokenizer = pair
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    (tmp_path / "task.toml").write_text('kind = "choice"\ndata = "data.jsonl"\n')
    result = evaluate(ours, read_task(tmp_path / "task.toml"), model="x")
    for question, record in zip(QUESTIONS, result.records, strict=True):
        for choice, ours_sum in zip(question["choices"], record["logprobs"], strict=True):
            before = ids_of(tokenizer, question["context"])
            whole = ids_of(tokenizer, question["context"] + choice)
            assert whole[: len(before)] == before, "no token crosses the border in these"
            assert ours_sum == pytest.approx(sum(logprobs(theirs, [2, *whole])[len(before) :]), abs=1e-3)
