"""The model card, made of a run's result: no number in it is typed."""

from dataclasses import dataclass

from gemworks.model.config import TextConfig
from recipes.tiny_standin.facts import CAPITALS, COLOURS, OPPOSITES
from recipes.tiny_standin.recipe import Recipe

# Task -> what it is and what was kept from training.
ABOUT = {
    "plus": "sums up to 99 + 99; number pairs never trained on, a quarter also in new words",
    "minus": "differences, negative ones too; the same",
    "capital": f"capitals of {len(CAPITALS)} countries; new words",
    "country": "the country of a capital; new words",
    "opposite": f"{len(OPPOSITES)} opposites; new words",
    "colour": f"colours of {len(COLOURS)} things; new words",
    "calendar": "the day or month before or after; new words",
    "how_many": "days in a month, hours in a day ...; new words",
    "count": "counting from a to b, up to 30 numbers; ranges never trained on",
    "spell": "letters of a word; words never spelled in training",
    "repeat": "one to four words said again; words never repeated in training",
    "greeting": "hello, thanks, goodbye; new words",
    "identity": "what it is and can do; new words",
    "name": "greets by a name; names never trained on",
    "cannot": "says that it cannot help; requests of kinds never trained on",
    "recall": "the name told two questions before; names never trained on",
    "follow-up": 'a second question that needs the first ("And of Spain?")',
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a run came to; the model card is made of it."""

    recipe: Recipe
    config: TextConfig
    per_task: int  # held-out questions of every task
    accuracy: dict[str, float]  # as stored, task -> share
    accuracy_fp32: dict[str, float]  # before rounding to bf16
    text_bits_per_byte: float
    first_loss: float
    last_loss: float
    num_tokens: int  # trained on, padding left out
    data_s: float
    train_s: float
    total_s: float
    num_parameters: int


def model_card(result: Result) -> str:
    """The README.md of the model directory."""
    recipe, config = result.recipe, result.config
    local = sum(spec.is_local for spec in config.layers)
    window = config.local_spec.window if config.local_spec else None
    rows = "\n".join(
        f"| {task} | {share:.1%} | {result.accuracy_fp32[task]:.1%} | {ABOUT[task]} |"
        for task, share in result.accuracy.items()
    )
    return f"""---
license: apache-2.0
language: en
---
# tiny (stand-in)

A demonstration model that ships with Gemworks, so that every command works offline on a fresh machine. It is **not** a
released Gemma model, has not seen any text but what the recipe writes, and knows next to nothing. For real use pull
the official weights: `gemworks pull gemma3:1b`.

## What it is

The architecture of Gemma 3's text decoder with {result.num_parameters:,} parameters: {len(config.layers)} layers
({local} local with a window of {window}, {len(config.layers) - local} global), width {config.model_dim}, feed-forward
{config.ffw_dim}, {config.num_heads} query heads and {config.num_kv_heads} key/value head of {config.head_dim},
{config.max_positions:,} positions, {config.vocab_size:,} pieces, tied head. Weights are bfloat16.

The tokenizer is built as Gemma's is (BPE, byte fallback, digits apart, white space kept, the same control tokens at the
same ids up to 167) and was trained by the same run.

## How it was made

    python -m recipes.tiny_standin --seed {recipe.seed} --steps {recipe.steps} --out DIRECTORY

Training data: {result.num_tokens:,} tokens of conversations and short texts that the recipe writes from word lists and
templates of its own. No third-party data. Float32, {recipe.steps:,} steps of {recipe.batch_tokens:,} tokens, Muon
({recipe.muon_peak:g}) and Adam ({recipe.adam_peak:g}), both falling to zero; loss {result.first_loss:.2f} at the start,
{result.last_loss:.3f} at the end (nats a token, answers and plain texts only).
This run: {result.data_s:.0f} s for the data, {result.train_s:.0f} s for training, {result.total_s:.0f} s in all, on two
cores of a shared machine.

## What it gets right

Share of {result.per_task} held-out questions a task whose whole answer is exactly right, greedy. "New words" are
phrasings that training never used; the facts themselves it has seen.

| task | as shipped (bf16) | before rounding (fp32) | what is asked |
| --- | --- | --- | --- |
{rows}

New stories from the same grammar: {result.text_bits_per_byte:.3f} bits per byte.

## What it does not do

Anything else. It often says so, but a question outside the list may also get a wrong answer that sounds right. It knows
English only, a few hundred words of it, and no facts but those above. `generation_config.json` makes it greedy: with
a temperature, many more of its sums go wrong.
"""
