"""The second stage: projector and decoder learn to talk about what a frozen tower sees.

    once       every tile of the album -> tower as it is stored (bf16) -> pool -> album of pooled_E
    each step  pooled -> RMSNorm -> projector -> soft tokens in their places -> decoder -> cross-entropy of the answers

Half of a batch are texts, so that what the decoder knew without eyes stays.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemworks import ops
from gemworks.media import tower_input
from gemworks.model.config import TextConfig
from gemworks.model.layers import SoftTokens
from gemworks.model.siglip import Siglip
from gemworks.model.vision_config import VisionConfig
from gemworks.tokenizer.tokenizer import Tokenizer
from recipes.tiny_eyes.album import NUM_CLASSES
from recipes.tiny_eyes.learning import Learned, Report, learn
from recipes.tiny_eyes.rows import PictureRows, joined, without_pictures
from recipes.tiny_eyes.scenes import COLOURS, MOST, SHAPES, ZONES
from recipes.tiny_eyes.tower import pooled
from recipes.tiny_standin.build import batch_at
from recipes.tiny_standin.loss import cross_entropy, logits, mean_loss
from recipes.tiny_standin.packing import Rows
from recipes.tiny_standin.recipe import Recipe
from recipes.tiny_standin.training import Stacks, initial_weights, model_of

# B rows, L tokens a row, D decoder width, E tower width, T tiles, S soft tokens of all tiles

_TILES_AT_ONCE = 64


class TalkBatch(NamedTuple):
    """Rows and what their soft tokens are made of; has_BL: where one stands. Batches of texts alone have None."""

    rows: Rows
    see_BL: np.ndarray | None
    has_BL: np.ndarray | None
    pooled_BLE: np.ndarray | None


def embed_album(tower: Siglip, tiles: np.ndarray, report: Callable[[int], None]) -> np.ndarray:
    """pooled_SE in fp32 of uint8 tiles, the tokens of each tile in a row. `tower` as it is stored."""
    encode = jax.jit(lambda tower, pixels_BCYX: pooled(tower, pixels_BCYX))
    found = []
    for start in range(0, len(tiles), _TILES_AT_ONCE):
        some = tiles[start : start + _TILES_AT_ONCE]
        filled = np.concatenate([some, np.zeros((_TILES_AT_ONCE - len(some), *some.shape[1:]), some.dtype)])
        found.append(np.asarray(encode(tower, tower_input(filled)))[: len(some)])
        report(start)
    return np.concatenate(found).reshape(-1, found[0].shape[-1])


def train_text(recipe: Recipe, config: TextConfig, short: Rows, long: Rows, *, kept: Path, report: Report) -> Learned:
    """Train the decoder from nothing on texts alone, as the text recipe does."""
    return learn(
        "the decoder learns to read and write",
        recipe,
        initial_weights(config, recipe.seed),
        lambda stacks, rows: mean_loss(model_of(stacks, config), rows),
        lambda step: batch_at(recipe, short, long, step),
        kept=kept,
        report=report,
    )


def aligned_projector(decoder: Stacks, tower: Stacks, tokenizer: Tokenizer, eyes: VisionConfig, seed: int) -> Stacks:
    """A projector that says what the tower's heads read in the decoder's own words, and a little of everything else.

    A soft token begins as the sum of the embeddings of `red`, `circle`, `top left`, each by its logit. From a random
    projector, and without questions for lists, the decoder had learned nothing but the count after 500 steps.
    """
    rng = np.random.default_rng([seed, 1])
    embed_VD = np.asarray(decoder["embed.weight"])
    words_HD = np.stack([_meaning(word, embed_VD, tokenizer) for word in _words()])
    heads_HE, at = np.array(tower["heads"]), 0
    for size in NUM_CLASSES.values():
        heads_HE[at : at + size] -= heads_HE[at : at + size].mean(axis=0)
        at += size
    weight_ED = heads_HE.T @ words_HD
    weight_ED /= np.linalg.norm(weight_ED, axis=0).mean()
    weight_ED += 0.3 * rng.normal(size=weight_ED.shape) * eyes.model_dim**-0.5
    weight_ED *= embed_VD.std() * embed_VD.shape[1] ** 0.5  # as large as the embeddings that enter the first layer
    projector = {"projector.norm.scale": np.zeros(eyes.model_dim), "projector.weight": weight_ED}
    return {name: jnp.asarray(x, jnp.float32) for name, x in projector.items()}


def talking_loss(stacks: Stacks, batch: TalkBatch, config: TextConfig, eyes: VisionConfig) -> jax.Array:
    """Cross-entropy in nats a target."""
    return cross_entropy(talk_logits(stacks, batch, config, eyes), batch.rows)


def talk_logits(stacks: Stacks, batch: TalkBatch, config: TextConfig, eyes: VisionConfig) -> jax.Array:
    """logits_BLV, soft tokens made by the projector of `stacks`."""
    soft = None
    if batch.pooled_BLE is not None:
        normed_BLE = ops.rms_norm(batch.pooled_BLE, stacks["projector.norm.scale"], eps=eyes.norm_eps)
        rows_BLD = jax.vmap(ops.linear, (0, None))(normed_BLE, stacks["projector.weight"].T)
        index_BL = jnp.where(batch.has_BL, jnp.arange(rows_BLD.shape[1], dtype=jnp.int32), -1)
        soft = SoftTokens(rows_BLD, index_BL)
    return logits(model_of(stacks, config), batch.rows, see_BL=batch.see_BL, soft=soft)


def talk_batch(rows: PictureRows, pooled_SE: np.ndarray) -> TalkBatch:
    """Rows with the pooled features of their tiles; zeros where no soft token stands."""
    has_BL = rows.soft_BL >= 0
    return TalkBatch(rows.rows, rows.see_BL, has_BL, pooled_SE[np.maximum(rows.soft_BL, 0)] * has_BL[..., None])


def _words() -> list[str]:
    """What the classes of the tower's heads are called, in their order; an empty cell says nothing."""
    return [*(str(i + 1) for i in range(MOST)), *SHAPES, "", *COLOURS, *ZONES]


def _meaning(word: str, embed_VD: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """The mean embedding of the pieces of a word within a sentence."""
    return embed_VD[tokenizer.encode(f" {word}")].mean(axis=0) if word else np.zeros(embed_VD.shape[1])


class Lessons(NamedTuple):
    """All rows of a run."""

    short: Rows
    long: Rows
    pictures: PictureRows
    pooled_SE: np.ndarray

    def batch(self, recipe: Recipe, picture_rows: int, step: int) -> TalkBatch:
        """The batch of a step, counted from 0: long texts, or short texts and pictures; none is seen twice."""
        texts = batch_at(recipe, self.short, self.long, step)
        if (step + 1) % recipe.long_every == 0:
            return TalkBatch(texts, None, None, None)
        at = (step - (step + 1) // recipe.long_every) * picture_rows
        some = slice(at, at + picture_rows)
        rows = Rows(*(array[some] for array in self.pictures.rows))
        pictures = PictureRows(rows, self.pictures.soft_BL[some], self.pictures.see_BL[some])
        return talk_batch(joined(without_pictures(texts), pictures), self.pooled_SE)


def train_talker(
    recipe: Recipe,
    config: TextConfig,
    eyes: VisionConfig,
    before: Stacks,
    lessons: Callable[[], Lessons],
    *,
    picture_rows: int,
    kept: Path,
    report: Report,
) -> Learned:
    """Train projector and decoder from what they are `before`; lessons as the album of the tower."""
    return learn(
        "projector and decoder learn to talk",
        recipe,
        before,
        lambda stacks, batch: talking_loss(stacks, batch, config, eyes),
        lambda step: lessons().batch(recipe, picture_rows, step),
        kept=kept,
        report=report,
    )
