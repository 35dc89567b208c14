"""The model card, made of a run's result: no number in it is typed."""

from dataclasses import dataclass

from gemworks.model.config import TextConfig
from recipes.tiny_eyes.evaluation import Score
from recipes.tiny_eyes.recipe import EyesRecipe
from recipes.tiny_eyes.scenes import COLOURS, MOST, SHAPES, ZONES
from recipes.tiny_standin.card import ABOUT

_ABOUT_EYES = {
    "colour": "the colour of the only circle, square ...",
    "shape": "the shape of the only red, blue ... thing",
    "count": f"how many shapes there are, 1 to {MOST}",
    "position": f"where a shape is, one of {len(ZONES)} places",
    "describe": "what a picture of one shape shows; of several, how many",
    "list": "every shape with colour and place, in order; all of it right",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EyesResult:
    """What a run came to. losses: first and last of each stage; seconds of each stage, over all its starts."""

    recipe: EyesRecipe
    config: TextConfig
    scores: list[Score]
    per_task: int
    text_accuracy: dict[str, float]
    text_bits_per_byte: float
    losses: dict[str, tuple[float, float]]
    seconds: dict[str, float]
    total_s: float
    decoder_parameters: int
    eyes_parameters: int


def card_with_eyes(result: EyesResult) -> str:
    """The README.md of the model directory."""
    recipe = result.recipe
    stage_s = {name: f"{seconds:.0f} s" for name, seconds in result.seconds.items()}
    return f"""---
license: apache-2.0
language: en
---
# tiny

A demonstration model that ships with Gemworks, so that every command works offline on a fresh machine. It is **not** a
released Gemma model, has seen nothing but the texts and pictures that the recipe makes, and knows next to nothing. For
real use pull the official weights: `gemworks pull gemma3:4b`.

{_what_it_is(result)}
## How it was made

    python -m recipes.tiny_eyes --seed {recipe.seed} --out DIRECTORY

| stage | what learns | on | steps | loss, first to last | time |
| --- | --- | --- | --- | --- | --- |
{_stage_rows(result, stage_s)}

All texts and pictures are made by the recipe; no third-party data. Pictures hold one to {MOST} shapes of
{len(SHAPES)} kinds in {len(COLOURS)} colours, at odd sizes, drawn by the recipe and prepared by the code that serves.
Float32, Muon and Adam, both rates falling to zero. Times are of this run, on one of two cores of a shared machine.

## What it gets right

### Pictures

Whole answers, greedy, from a PNG file through the path that serves. New scenes: arrangements of shapes, colours and
places that training never saw. New words: the question's wording was kept from training too. In brackets: where the
true share is with 95 % (Wilson).

| question | new scenes | those with crops among them | new scenes and new words | what is asked |
| --- | --- | --- | --- | --- |
{_score_rows(result.scores)}

### Texts

Share of {result.per_task} held-out questions a task whose whole answer is exactly right, greedy. "New words" are
phrasings that training never used; the facts themselves it has seen.

| task | right | what is asked |
| --- | --- | --- |
{_text_rows(result.text_accuracy)}

New stories from the same grammar: {result.text_bits_per_byte:.3f} bits per byte.

## What it does not do

Anything else. It often says so, but a question outside the lists may also get a wrong answer that sounds right, and of
a photograph it says something about shapes. It knows English only, a few hundred words of it. `generation_config.json`
makes it greedy: with a temperature, many more of its sums go wrong.
"""


def _what_it_is(result: EyesResult) -> str:
    config, eyes = result.config, result.recipe.eyes
    size, window = eyes.image_size, config.local_spec.window if config.local_spec else None
    local = sum(spec.is_local for spec in config.layers)
    return f"""## What it is

The architecture of Gemma 3 with eyes (`Gemma3ForConditionalGeneration`): {result.decoder_parameters:,} parameters of
text decoder, {result.eyes_parameters:,} of vision tower and projector, all bfloat16.

Decoder: {len(config.layers)} layers ({local} local with a window of {window}, {len(config.layers) - local} global),
width {config.model_dim}, feed-forward {config.ffw_dim}, {config.num_heads} query heads and {config.num_kv_heads}
key/value head of {config.head_dim}, {config.max_positions:,} positions, {config.vocab_size:,} pieces, tied head.

Eyes: SigLIP's encoder with {eyes.num_layers} layers of width {eyes.model_dim} over {size} x {size} pixels in patches
of {eyes.patch_size}, {eyes.tokens_per_image} soft tokens an image. Every picture is squashed to that
square; Pan & Scan ("detail": "high") adds crops of wide ones.

The tokenizer is built as Gemma's is (BPE, byte fallback, digits apart, white space kept, the same control tokens at the
same ids up to 167) and was trained by the same run.
"""


def _stage_rows(result: EyesResult, stage_s: dict[str, str]) -> str:
    recipe = result.recipe
    about = {
        "text": ("decoder", f"texts, {recipe.text.batch_tokens:,} tokens a step", recipe.text.steps),
        "tower": (
            "vision tower, with a matrix that is thrown away",
            f"what is in {recipe.tower.album:,} pictures, {recipe.tower.batch} a step",
            recipe.tower.steps,
        ),
        "talk": (
            "projector and decoder; the tower is frozen, its output computed once",
            f"questions about those pictures, {recipe.picture_rows * recipe.talk.row:,} tokens a step, and texts, "
            f"{recipe.talk.batch_tokens:,}",
            recipe.talk.steps,
        ),
    }
    return "\n".join(
        f"| {name} | {what} | {on} | {steps:,} | {result.losses[name][0]:.2f} to {result.losses[name][1]:.3f} "
        f"| {stage_s[name]} |"
        for name, (what, on, steps) in about.items()
    )


def _score_rows(scores: list[Score]) -> str:
    old = {one.kind: one for one in scores if not one.is_new_words}
    new = {one.kind: one for one in scores if one.is_new_words}
    return "\n".join(
        f"| {kind} | {said(old[kind])} | {old[kind].cropped_right} of {old[kind].cropped_number} | {said(new[kind])} "
        f"| {_ABOUT_EYES[kind]} |"
        for kind in old
    )


def said(score: Score) -> str:
    """A score as the card and the command say it."""
    low, high = score.interval
    return f"{score.share:.1%} of {score.number:,} ({low:.1%} to {high:.1%})"


def _text_rows(accuracy: dict[str, float]) -> str:
    return "\n".join(f"| {task} | {share:.1%} | {ABOUT[task]} |" for task, share in accuracy.items())
