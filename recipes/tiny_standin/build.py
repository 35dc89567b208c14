"""From a seed to a directory: tokenizer, rows, training, evaluation, files. Nothing is written before all is done."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from gemworks.model.config import TextConfig
from gemworks.model.costs import num_parameters
from gemworks.model.gemma3 import Gemma3
from recipes.tiny_standin.card import Result, model_card
from recipes.tiny_standin.corpus import tokenizer_texts, training_rows
from recipes.tiny_standin.evaluation import bits_per_byte, exact_match
from recipes.tiny_standin.loss import as_stored, mean_loss
from recipes.tiny_standin.packing import Rows
from recipes.tiny_standin.recipe import Recipe
from recipes.tiny_standin.saving import save
from recipes.tiny_standin.training import begin, initial_weights, model_of
from recipes.tiny_standin.vocabulary import train_tokenizer

Report = Callable[[str, int, int], None]  # what is going on, how much of it is done, how much there is

PER_TASK = 200  # held-out questions of every task
_LOSS_EVERY = 20  # steps between two losses that are kept and shown


def make(
    out: Path, recipe: Recipe, architecture: Callable[[int], TextConfig], *, force: bool, report: Report
) -> Result:
    """Train `architecture(vocabulary size)` by `recipe` and write it as the directory `out`, whole or not at all.

    Raises ConfigError if `out` is there and `force` is off, StorageError if it cannot be written.
    """
    started = time.perf_counter()
    report("writing texts", 0, 1)
    tokenizer = train_tokenizer(tokenizer_texts(recipe.seed))
    short, long = training_rows(tokenizer, recipe)
    data_s = time.perf_counter() - started
    config = architecture(tokenizer.size)
    model, losses = train(config, recipe, short, long, report)
    train_s = time.perf_counter() - started - data_s
    report("asking what it never saw", 0, 1)
    stored = as_stored(model)
    result = Result(
        recipe=recipe,
        config=config,
        per_task=PER_TASK,
        accuracy=exact_match(stored, tokenizer, seed=recipe.seed, per_task=PER_TASK),
        accuracy_fp32=exact_match(model, tokenizer, seed=recipe.seed, per_task=PER_TASK),
        text_bits_per_byte=bits_per_byte(stored, tokenizer, seed=recipe.seed),
        first_loss=losses[0],
        last_loss=sum(losses[-5:]) / len(losses[-5:]),
        num_tokens=int((short.segment_BL > 0).sum() + (long.segment_BL > 0).sum()),
        data_s=data_s,
        train_s=train_s,
        total_s=time.perf_counter() - started,
        num_parameters=num_parameters(config),
    )
    save(out, stored, tokenizer, model_card(result), force=force)
    return result


def train(config: TextConfig, recipe: Recipe, short: Rows, long: Rows, report: Report) -> tuple[Gemma3, list[float]]:
    """Return the trained float32 model, and the loss of every twentieth step and the last."""
    stacks, state, put, step = begin(
        recipe,
        initial_weights(config, recipe.seed),
        lambda stacks, rows: mean_loss(model_of(stacks, config), rows),
        jax.devices(),
    )
    losses: list[float] = []
    for number, rows in enumerate(batches(recipe, short, long), 1):
        # With steps queued up, two devices may each wait for the other's next step: XLA's threads are as many as they.
        stacks, state, loss = jax.block_until_ready(step(put(rows), stacks, state))
        if number % _LOSS_EVERY == 1 or number == recipe.steps:
            losses.append(float(loss))
            report(f"training, loss {losses[-1]:.3f}", number, recipe.steps)
    return model_of(jax.device_get(stacks), config), losses


def batches(recipe: Recipe, short: Rows, long: Rows) -> Iterator[Rows]:
    """Yield `recipe.steps` batches: every `long_every`-th of long rows, the others of short ones, none twice."""
    for step in range(recipe.steps):
        yield batch_at(recipe, short, long, step)


def batch_at(recipe: Recipe, short: Rows, long: Rows, step: int) -> Rows:
    """The batch of a step, counted from 0."""
    num_long = (step + 1) // recipe.long_every  # steps with long rows so far, this one among them
    if (step + 1) % recipe.long_every == 0:
        size, at, rows = recipe.long_tokens // recipe.long_row, num_long - 1, long
    else:
        size, at, rows = recipe.batch_tokens // recipe.row, step - num_long, short
    return Rows(*(array[at * size : (at + 1) * size] for array in rows))
