"""Learning from conversations against transformers and torch: the loss, and 20 steps of full tuning on the same rows.

Theirs is a plain loop: each conversation alone through the model, the mask of our rows, torch's AdamW and clipping.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from chat_model import lessons, letters_tokenizer
from hf_models import Shape, configs, randomize
from transformers import Gemma3ForCausalLM

from gemworks.data.chat_rendering import render
from gemworks.data.chat_rows import ChatSource, joined
from gemworks.train.forward import parameter_shapes
from gemworks.train.loop import Run, train
from gemworks.train.loss import NextToken
from gemworks.train.optimizer import schedule
from gemworks.train.recipe import Optimizer, Recipe, Schedule
from gemworks.weights.names import hf_from_ours

STEPS, VOCAB = 20, 336


def conversations():
    """Some of one turn and some of two."""
    said = [one["messages"] for one in lessons(24)]
    return [said[i] + said[i + 1] if i % 3 == 0 else said[i] for i in range(23)]


@pytest.fixture(scope="module")
def source():
    rendered = [(render(letters_tokenizer(), one), ("a.jsonl", i)) for i, one in enumerate(conversations())]
    return ChatSource(joined(rendered), length=96, batch_rows=4, seed=1, vocab_size=VOCAB, tokenizer="t")


def recipe_of(config) -> Recipe:
    return Recipe(
        model=config,
        method=NextToken(logits_at_once=50 * VOCAB),
        steps=STEPS,
        rows=4,
        tokens=96,
        accumulate=2,
        dtype="float32",
        optimizer=Optimizer(peak=3e-3, b2=0.999, weight_decay=0.0, clip=1.0),
        schedule=Schedule(kind="cosine", warm_up=3),
    )


def their_losses(model, source, recipe) -> list[float]:
    model = model.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rate = schedule(recipe, recipe.optimizer.peak)
    losses = []
    for step in range(STEPS):
        batch = source.batch(step)
        total = torch.zeros((), dtype=torch.float64)
        for b in range(len(batch.ids_BT)):
            for index in range(1, batch.segment_BT[b].max() + 1):
                here = batch.segment_BT[b] == index
                ids, targets = (torch.tensor(x[b, here].astype(np.int64)) for x in (batch.ids_BT, batch.targets_BT))
                logits = model(ids[None]).logits[0]
                nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                total = total + nll[torch.tensor(batch.loss_mask_BT[b, here])].sum()
        loss = total / int(batch.loss_mask_BT.sum())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_twenty_steps_of_full_tuning_have_their_losses(source, tmp_path):
    theirs, config = configs(Shape(2, 1, 16, 48, 7, 16, 1.0, 16), VOCAB)
    config = replace(config, max_positions=512)
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(theirs).eval()
    randomize(model, theirs.hidden_size)
    named = dict(model.named_parameters())
    initial = {name: named[hf_from_ours(name)].detach().numpy().copy() for name in parameter_shapes(config)}
    recipe, seen = recipe_of(config), []
    train(Run(recipe, source, initial=lambda: initial), tmp_path, observe=[seen.append], measure_peak=False)
    wanted = their_losses(model, source, recipe)
    got = [one["loss"] for one in seen]
    assert got[0] == pytest.approx(wanted[0], rel=1e-5)
    assert wanted[-1] < 0.8 * wanted[0], "nothing was learned that could differ"
    np.testing.assert_allclose(got, wanted, rtol=1e-3)
