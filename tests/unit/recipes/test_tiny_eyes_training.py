"""The run that gives `tiny` eyes, at the smallest size: it learns, goes on where it stopped, is served as trained."""

import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import LLM
from gemworks.model.gemma3 import full_batch
from gemworks.ops import select
from gemworks.weights.names import expected_shapes, expected_vision_shapes
from gemworks.weights.vision import load_vision, vision_config_of
from recipes.tiny_eyes import talk
from recipes.tiny_eyes.album import facts_of, make_album
from recipes.tiny_eyes.evaluation import asked
from recipes.tiny_eyes.recipe import nano_recipe
from recipes.tiny_eyes.rows import packed, picture_sample
from recipes.tiny_eyes.saving import save_with_eyes
from recipes.tiny_standin.corpus import tokenizer_texts
from recipes.tiny_standin.loss import as_stored
from recipes.tiny_standin.recipe import tiny_config
from recipes.tiny_standin.vocabulary import train_tokenizer

pytest.importorskip("optax", reason="needs the [train] extra")

from recipes.tiny_eyes import learning
from recipes.tiny_eyes.decoder import aligned_projector, embed_album, talk_batch, talk_logits
from recipes.tiny_eyes.tower import batch_of, initial_tower, look, seeing_loss, tower_of
from recipes.tiny_standin.training import initial_weights, leaf_of

NANO = nano_recipe()
EYES = NANO.eyes
TOKENS = EYES.tokens_per_image


def quiet(*_) -> None:
    pass


@pytest.fixture(scope="module")
def album():
    return make_album("nano", 24, EYES.image_size, quiet)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tokenizer_texts(0))


@pytest.fixture(scope="module")
def stacks(tokenizer):
    """A model with eyes that has learned nothing, in the values that bf16 has: decoder, projector and tower."""
    found = initial_weights(tiny_config(tokenizer.size), 0) | initial_tower(EYES, 0)
    found |= aligned_projector(found, found, tokenizer, EYES, 0)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), found)


@pytest.fixture(scope="module")
def saved(tokenizer, stacks, tmp_path_factory) -> Path:
    config = tiny_config(tokenizer.size)
    leaf = leaf_of(stacks)
    shapes = expected_shapes(config) | expected_vision_shapes(EYES, config.model_dim)
    arrays = {name: np.asarray(leaf(name, shape)) for name, shape in shapes.items()}
    out = tmp_path_factory.mktemp("saved") / "nano"
    save_with_eyes(out, config, EYES, arrays, tokenizer, "a card", force=False)
    return out


@pytest.mark.exhaustive
def test_a_tower_learns_in_a_few_steps(album):
    """By the signs of its gradient alone: from the loss of a guess, 7.5 nats, by more than one."""
    stacks = initial_tower(EYES, 0)
    with select.force("*", "xla"):
        slope = jax.jit(jax.value_and_grad(lambda stacks, seen: seeing_loss(stacks, seen, EYES)))
        facts, losses = facts_of(album.scenes), []
        for number in range(25):
            seen = batch_of(album, facts, NANO.tower, number)
            loss, gradient = slope(stacks, seen)
            stacks = jax.tree.map(lambda x, g: x - 0.01 * jnp.sign(g), stacks, gradient)
            losses.append(float(loss))
    assert 6 < losses[0] < 9
    assert np.mean(losses[-3:]) < losses[0] - 1


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Stopped after 250 of 500 steps and started anew, it comes to the very numbers of a run that was not."""

    def begin(schedule, stacks, loss, devices):
        def step(batch, stacks, velocity):
            velocity = {name: 0.9 * velocity[name] - batch for name in velocity}
            return {name: stacks[name] + velocity[name] for name in stacks}, velocity, stacks["w"].sum()

        return stacks, jax.tree.map(jnp.zeros_like, stacks), lambda batch: batch, step

    monkeypatch.setattr(learning, "begin", begin)
    seen: list[int] = []

    def batch(number: int) -> float:
        seen.append(number)
        return float(np.sin(number))

    def run(name: str, batch) -> learning.Learned:
        start = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        schedule = NANO.tower._replace(steps=500)
        return learning.learn(
            name, schedule, start, lambda *_: jnp.zeros(()), batch, kept=tmp_path / name, report=quiet
        )

    def stopping(number: int) -> float:
        if number == 300:
            raise KeyboardInterrupt
        return batch(number)

    whole = run("whole", batch)
    with pytest.raises(KeyboardInterrupt):
        run("halves", stopping)
    seen.clear()
    halves = run("halves", batch)
    assert seen == list(range(250, 500)), "only what was not done yet"
    assert halves.losses == whole.losses
    for name, array in whole.stacks.items():
        np.testing.assert_array_equal(halves.stacks[name], array)
    seen.clear()
    assert run("halves", batch).losses == whole.losses
    assert not seen, "a finished stage asks for no batch"


def test_the_directory_says_what_it_is(saved, stacks):
    assert vision_config_of(saved) == EYES
    vision = load_vision(saved, dtype="float32")
    np.testing.assert_array_equal(vision.projector.weight_ED, stacks["projector.weight"])
    np.testing.assert_array_equal(vision.tower.position_PD, stacks["vision.position"])
    assert sum(file.stat().st_size for file in saved.iterdir()) < 1_500_000


@pytest.mark.exhaustive
def test_serving_says_what_training_predicts(saved, stacks, tokenizer, album):
    """Greedy answers of LLM.chat, token by token the likeliest of the training pass: same tiles, wording and mask.

    Two pictures, one of them wide with crops, in one conversation; the model is random, so that anything would show.
    """
    wide = next(i for i in range(len(album.scenes)) if album.num_crops(i))
    plain = next(i for i, scene in enumerate(album.scenes) if not scene.is_wide)
    llm = LLM(saved, dtype="float32")
    try:
        for i in (plain, wide):
            scene = album.scenes[i]
            messages = asked(scene, "What colour is it?")
            answer = llm.chat(messages, temperature=0, max_tokens=6)
            shown = talk.Shown([*messages, {"role": "assistant", "content": "?"}], [i])
            sample = picture_sample(tokenizer, shown, album, TOKENS)
            header = sample.sample.is_target.index(True)
            ids = sample.sample.ids[:header] + list(answer.token_ids)
            given = sample._replace(sample=sample.sample._replace(ids=ids, is_target=[False] * len(ids)))
            rows = packed([given], 224, TOKENS)
            with select.force("*", "xla"):
                pooled_SE = embed_album(tower_of(stacks, EYES), album.tiles, quiet)
                logits_BLV = talk_logits(stacks, talk_batch(rows, pooled_SE), tiny_config(tokenizer.size), EYES)
            likeliest = np.asarray(logits_BLV[0].argmax(axis=-1))[header - 1 : len(ids) - 1]
            assert likeliest.tolist() == list(answer.token_ids)
    finally:
        llm.close()


def test_soft_tokens_see_each_other(stacks, tokenizer, album):
    """With the mask of text, what is behind a soft token would not reach it: the two passes must differ."""
    shown = talk.conversation_about(random.Random(0), album.scenes)
    rows = packed([picture_sample(tokenizer, shown, album, TOKENS)], 224, TOKENS)
    config = tiny_config(tokenizer.size)
    with select.force("*", "xla"):
        batch = talk_batch(rows, embed_album(tower_of(stacks, EYES), album.tiles, quiet))
        both = talk_logits(stacks, batch, config, EYES)
        one_way = talk_logits(stacks, batch._replace(see_BL=np.zeros_like(rows.see_BL)), config, EYES)
    assert float(jnp.abs(both - one_way).max()) > 1e-3


def test_texts_are_computed_as_without_eyes(stacks, tokenizer):
    """A row without a picture in a batch with pictures: the logits of the text decoder alone."""
    from recipes.tiny_eyes.rows import without_pictures
    from recipes.tiny_standin.packing import chat_sample, pack
    from recipes.tiny_standin.training import model_of

    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi"}]
    rows, _ = pack([chat_sample(tokenizer, messages)], 32)
    config = tiny_config(tokenizer.size)
    with select.force("*", "xla"):
        model = model_of(stacks, config)
        h_LD, _ = model(full_batch(jnp.asarray(rows.ids_BL[0]), config, jnp.asarray(rows.segment_BL[0])))
        batch = talk_batch(without_pictures(rows), np.zeros((TOKENS, EYES.model_dim), np.float32))
        got = talk_logits(stacks, batch, config, EYES)[0]
    np.testing.assert_allclose(got, model.logits(h_LD), atol=1e-5)


def test_the_loss_of_a_scene_counts_empty_cells_once(album, stacks):
    """Guessing nothing at all costs the entropy of the classes: ln 5 + ln 6 + ln 7 + ln 9."""
    blind = stacks | {"heads": jnp.zeros_like(stacks["heads"])}
    chosen = np.arange(8)
    seen = look(album.tiles[album.tiles_of[chosen]], facts_of(album.scenes), chosen)
    with select.force("*", "xla"):
        loss = seeing_loss(blind, seen, EYES)
    assert float(loss) == pytest.approx(np.log([5, 6, 7, 9]).sum(), abs=1e-4)


def test_a_tower_is_stored_in_bf16(stacks):
    for leaf in jax.tree.leaves(as_stored(tower_of(stacks, EYES))):
        assert leaf.dtype == (jnp.bfloat16 if leaf.ndim > 1 else jnp.float32)


@pytest.mark.exhaustive
def test_the_whole_run_at_the_smallest_size(tmp_path):
    """All stages, evaluation and card; a second call trains nothing and writes the same weights."""
    from recipes.tiny_eyes.build import make

    told: list[str] = []
    result = make(
        tmp_path / "out", NANO, work=tmp_path / "work", force=False, report=lambda what, *_: told.append(what)
    )
    assert {score.kind for score in result.scores} == {"colour", "shape", "count", "position", "describe", "list"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| position |" in card and "| capital |" in card and "nan" not in card
    assert any(what.startswith("the tower learns") for what in told)
    told.clear()
    make(tmp_path / "again", NANO, work=tmp_path / "work", force=False, report=lambda what, *_: told.append(what))
    assert not any("learn" in what for what in told)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
