"""From a seed to a directory with eyes: album, tower, text, talk, files, and what it gets right when it is served.

work/tower.npz   tower (stage 1)          everything that the next step needs; a run that stopped goes on there
work/text.npz    decoder (stage 2)
work/talk.npz    projector and decoder (stage 3)
work/model       the model without a card, which is what is evaluated
"""

import time
from functools import cache
from pathlib import Path

import jax
import numpy as np

from gemworks.model.config import TextConfig
from gemworks.model.vision_config import VisionConfig
from gemworks.ops import select
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.names import expected_shapes, expected_vision_shapes
from recipes.tiny_eyes.album import Album, make_album
from recipes.tiny_eyes.card import EyesResult, card_with_eyes
from recipes.tiny_eyes.decoder import Lessons, aligned_projector, embed_album, train_talker, train_text
from recipes.tiny_eyes.evaluation import evaluate
from recipes.tiny_eyes.learning import Learned, Report
from recipes.tiny_eyes.recipe import EyesRecipe
from recipes.tiny_eyes.rows import picture_rows
from recipes.tiny_eyes.saving import save_with_eyes
from recipes.tiny_eyes.tower import tower_of, train_tower
from recipes.tiny_standin.build import PER_TASK
from recipes.tiny_standin.corpus import tokenizer_texts, training_rows
from recipes.tiny_standin.evaluation import bits_per_byte, exact_match
from recipes.tiny_standin.loss import as_stored
from recipes.tiny_standin.recipe import tiny_config
from recipes.tiny_standin.training import Stacks, leaf_of, model_of
from recipes.tiny_standin.vocabulary import train_tokenizer


def make(out: Path, recipe: EyesRecipe, *, work: Path, force: bool, report: Report) -> EyesResult:
    """Train by `recipe`, evaluate, and write the directory `out`, whole or not at all; stages are kept in `work`.

    Raises ConfigError if `out` is there and `force` is off, StorageError if it cannot be written.
    """
    started = time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    report("writing texts", 0, 1)
    tokenizer = train_tokenizer(tokenizer_texts(recipe.seed))
    config = tiny_config(tokenizer.size)
    with select.force("*", "xla"):  # the kernels take one picture at a time, and their gradients are XLA's
        stages = _train(recipe, config, tokenizer, work, report)
    arrays = _arrays(stages, config, recipe.eyes)
    save_with_eyes(work / "model", config, recipe.eyes, arrays, tokenizer, "", force=True)
    scores = evaluate(work / "model", seed=recipe.seed, number=recipe.held_scenes, report=report)
    report("asking what it never read", 0, 1)
    stored = as_stored(model_of(stages["talk"].stacks, config))
    result = EyesResult(
        recipe=recipe,
        config=config,
        scores=scores,
        per_task=PER_TASK,
        text_accuracy=exact_match(stored, tokenizer, seed=recipe.seed, per_task=PER_TASK),
        text_bits_per_byte=bits_per_byte(stored, tokenizer, seed=recipe.seed),
        losses={name: (one.losses[0], float(np.mean(one.losses[-5:]))) for name, one in stages.items()},
        seconds={name: one.seconds for name, one in stages.items()},
        total_s=time.perf_counter() - started,
        decoder_parameters=sum(np.prod(shape) for shape in expected_shapes(config).values()),
        eyes_parameters=sum(np.prod(s) for s in expected_vision_shapes(recipe.eyes, config.model_dim).values()),
    )
    save_with_eyes(out, config, recipe.eyes, arrays, tokenizer, card_with_eyes(result), force=force)
    return result


def _train(
    recipe: EyesRecipe, config: TextConfig, tokenizer: Tokenizer, work: Path, report: Report
) -> dict[str, Learned]:
    """The three stages by name."""
    eyes = recipe.eyes

    @cache
    def album() -> Album:
        return make_album(f"{recipe.seed} album", recipe.tower.album, eyes.image_size, _told(report, "drawing"))

    tower = train_tower(recipe.tower, eyes, album, kept=work / "tower.npz", report=report)
    text = train_text(
        recipe.text, config, *training_rows(tokenizer, recipe.text), kept=work / "text.npz", report=report
    )
    talk = train_talker(
        recipe.talk,
        config,
        eyes,
        text.stacks | aligned_projector(text.stacks, tower.stacks, tokenizer, eyes, recipe.seed),
        cache(lambda: _lessons(recipe, tokenizer, album(), tower.stacks, report)),
        picture_rows=recipe.picture_rows,
        kept=work / "talk.npz",
        report=report,
    )
    return {"text": text, "tower": tower, "talk": talk}


def _lessons(recipe: EyesRecipe, tokenizer: Tokenizer, album: Album, tower: Stacks, report: Report) -> Lessons:
    """All rows of the third stage, texts that the second did not have."""
    talk, eyes = recipe.talk, recipe.eyes
    frozen = as_stored(tower_of(tower, eyes))
    pooled_SE = embed_album(frozen, album.tiles, _told(report, "looking at every picture"))
    short, long = training_rows(tokenizer, talk._replace(seed=talk.seed + 1))
    pictures = picture_rows(
        tokenizer,
        album,
        seed=f"{recipe.seed} talk",
        number=talk.steps * recipe.picture_rows,
        length=talk.row,
        tokens_per_image=eyes.tokens_per_image,
    )
    return Lessons(short, long, pictures, pooled_SE)


def _arrays(stages: dict[str, Learned], config: TextConfig, eyes: VisionConfig) -> dict[str, np.ndarray]:
    """Our name -> array, of decoder, projector and tower."""
    leaf = leaf_of(stages["tower"].stacks | stages["talk"].stacks)
    shapes = expected_shapes(config) | expected_vision_shapes(eyes, config.model_dim)
    return {name: np.asarray(jax.device_get(leaf(name, shape))) for name, shape in shapes.items()}


def _told(report: Report, what: str):
    return lambda done: report(what, done, 0)
