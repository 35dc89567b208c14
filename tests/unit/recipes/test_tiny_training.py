"""The run of `tiny` at the smallest size: it learns, its score means what it says, and it is written whole or not."""

import random
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from small_models import random_model

from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig, five_local_one_global
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.checkpoint import open_checkpoint
from recipes.tiny_standin.corpus import tokenizer_texts, training_rows
from recipes.tiny_standin.evaluation import are_right, exact_match
from recipes.tiny_standin.loss import as_stored, mean_loss_jit, predicted
from recipes.tiny_standin.packing import Rows, Sample, chat_sample, pack
from recipes.tiny_standin.recipe import Recipe
from recipes.tiny_standin.saving import save
from recipes.tiny_standin.talk import conversation
from recipes.tiny_standin.vocabulary import train_tokenizer

ROOT = Path(__file__).parents[3]


def nano_config(vocab_size: int) -> TextConfig:
    return TextConfig(
        vocab_size=vocab_size,
        model_dim=32,
        ffw_dim=32,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        query_scale=0.25,
        layers=five_local_one_global(2, window=16),
        max_positions=256,
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_texts(0))


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model(nano_config(tokenizer.size))


def test_twenty_steps_lower_the_loss(tokenizer):
    """From the loss of a uniform guess, ln 1024 = 6.93, or a little above, by more than one nat."""
    pytest.importorskip("optax", reason="needs the [train] extra")
    from recipes.tiny_standin.build import train

    recipe = Recipe(steps=20, batch_tokens=1024, row=128, long_row=256, long_every=100, warm_up=4)
    short, long = training_rows(tokenizer, recipe)
    seen = []
    _, losses = train(nano_config(tokenizer.size), recipe, short, long, lambda *progress: seen.append(progress))
    assert 6 < losses[0] < 8.5
    assert losses[-1] < losses[0] - 1
    assert seen[-1][1:] == (20, 20)


def test_texts_in_a_row_do_not_see_each_other(tokenizer, model):
    """The loss of a row is that of its texts alone, weighted by their targets."""
    rng = random.Random(0)
    samples = [chat_sample(tokenizer, conversation(rng, 1)) for _ in range(3)]
    together, _ = pack(samples, 256)
    alone = [pack([sample], 256)[0] for sample in samples]
    assert together.ids_BL.shape == (1, 256)
    weights = [rows.weight_BL.sum() for rows in alone]
    apart = [float(mean_loss_jit(model, rows)) for rows in alone]
    np.testing.assert_allclose(float(mean_loss_jit(model, together)), np.average(apart, weights=weights), rtol=1e-5)


def test_an_answer_counts_if_greedy_generation_gives_it(tokenizer, model):
    """What the model itself says token by token is right; with any one token changed it is not."""
    prompt = chat_sample(tokenizer, conversation(random.Random(1), 1)).ids[:9]
    ids = list(prompt)
    for _ in range(6):
        rows, _ = pack([Sample(ids, [False] * len(ids))], 256)
        rows = Rows(*(np.repeat(array, 16, axis=0) for array in rows))  # the shape that are_right compiles
        ids.append(int(predicted(model, rows)[0, len(ids) - 1]))
    is_target = [i >= len(prompt) for i in range(len(ids))]
    changed = [[*ids[:i], (ids[i] + 1) % tokenizer.size, *ids[i + 1 :]] for i in range(len(prompt), len(ids))]
    assert are_right(model, [Sample(given, is_target) for given in (ids, *changed)]) == [True] + [False] * 6


def test_an_untrained_model_knows_nothing(tokenizer, model):
    scores = exact_match(model, tokenizer, seed=0, per_task=5)
    assert set(scores.values()) == {0.0}
    assert {"plus", "recall", "follow-up"} <= set(scores)


def test_what_is_written_is_what_was_evaluated(tokenizer, model, tmp_path):
    stored = as_stored(model)
    save(tmp_path / "out", stored, tokenizer, "a card", force=False)
    assert (tmp_path / "out" / "README.md").read_text() == "a card"
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.config == model.config
        assert checkpoint.is_chat
        assert checkpoint.generation.eos_ids == (1, 106)
        assert not checkpoint.generation.do_sample
        embedding = checkpoint.read("embed.weight")
        assert embedding.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(embedding, np.asarray(stored.embed.weight))
        gain = checkpoint.read("layers.1.ffw_post_norm.scale").astype(np.float32)
        np.testing.assert_array_equal(gain, np.asarray(stored.layers[1].ffw_post_norm.scale))
    assert Tokenizer.load(tmp_path / "out").encode("What is 7?") == tokenizer.encode("What is 7?")


def test_interrupted_writing_leaves_nothing(tokenizer, model, tmp_path, monkeypatch):
    def interrupted(self, directory, **_):
        (directory / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "out", as_stored(model), tokenizer, "a card", force=False)
    assert not list(tmp_path.iterdir())


def test_an_existing_model_is_not_replaced_unasked(tokenizer, model, tmp_path):
    stored = as_stored(model)
    save(tmp_path / "out", stored, tokenizer, "first", force=False)
    with pytest.raises(ConfigError, match="exists already"):
        save(tmp_path / "out", stored, tokenizer, "second", force=False)
    assert (tmp_path / "out" / "README.md").read_text() == "first"
    save(tmp_path / "out", stored, tokenizer, "second", force=True)
    assert (tmp_path / "out" / "README.md").read_text() == "second"


def test_the_command_refuses_before_it_trains(tmp_path):
    """A target that is there is an error in seconds, with exit code 2 and one message."""
    pytest.importorskip("optax", reason="needs the [train] extra")
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "recipes.tiny_standin", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
