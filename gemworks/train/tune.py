"""Tuning a model on conversations or preferences, from files to a directory that `gemworks run` takes.

    prepared = prepare("gemma3:1b", ["chats.jsonl"], TuneOptions(method="lora"))     all that can be refused is, here
    outcome = tune(prepared, Path("runs/mine"))                                      again after a stop: goes on

    OUT/adapter/ or OUT/model/     what validation found best so far; the last state where nothing is held out
        README.md                  the model card, when the run is done
    OUT/tune.json                  what was asked and what was chosen: a run that continues chooses nothing again
    OUT/data.json                  what became of every line of the data
    OUT/recipe.json, checkpoints/, metrics.jsonl       as every run's (docs/train.md)

Not here: what to choose (tuning.py), the card (tune_card.py), what a terminal shows (cli/tune.py).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.data.chat_rows import ChatSource, PairSource, Texts
from gemworks.data.store import tokenizer_digest
from gemworks.data.writing import appearing, read_json, replace_json
from gemworks.errors import ConfigError
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.train.adapters.base import Base, read_base
from gemworks.train.adapters.prompt import prompt_ids
from gemworks.train.assemble import stored_params
from gemworks.train.checkpoints import claim
from gemworks.train.dpo import DPO, reference_log_probs
from gemworks.train.loop import Run, train
from gemworks.train.recipe import Recipe, flat, with_settings
from gemworks.train.trained import new_params
from gemworks.train.tune_card import write_card
from gemworks.train.tune_data import DataReport, Progress, Split, read_split
from gemworks.train.tune_examiner import Examiner, restored_history, write_trained
from gemworks.train.tune_samples import Sample, choose_samples
from gemworks.train.tuning import TuneOptions, choose_length, choose_sizes, needed_bytes, new_recipe
from gemworks.weights import hub
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.tokenizer_cache import load_tokenizer

CHOSEN, DATA = "tune.json", "data.json"


@dataclass(frozen=True)
class Prepared:
    """A run that can begin. `held` is None where nothing is held out; bytes are those of a step, by arithmetic.

    name: the model's, as other programs look for it: a repository of the hub, or a path.
    """

    model: str
    name: str
    path: Path
    options: TuneOptions
    recipe: Recipe
    source: ChatSource
    held: ChatSource | None
    report: DataReport
    samples: list[Sample]
    tokenizer: Tokenizer
    num_parameters: int
    needed: int
    budget: int

    @property
    def final(self) -> str:
        """The name of the directory that holds what is trained."""
        return "model" if self.recipe.adapter is None else "adapter"


@dataclass(frozen=True)
class Outcome:
    """How a call of `tune` ended. `path`: what was trained; losses are of the validation set, None without one."""

    is_done: bool
    stopped_early: bool
    step: int
    best_step: int
    before: float | None
    best: float | None
    path: Path


def prepare(
    model: str,
    data: Sequence[str | Path],
    options: TuneOptions,
    *,
    out: Path | None = None,
    budget: int,
    recipe: Recipe | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> Prepared:
    """Return the run of a model on data, everything chosen. `budget`: bytes that a step may take.

    A `recipe` chooses in our place; `settings` (key=value) change what was chosen. Where `out` holds a run of the same
    options its choices are taken. Raises ConfigError, CapacityError, and as the readers do.
    """
    resolved = hub.resolve(model)
    with open_checkpoint(resolved.path) as checkpoint:
        config, tokenizer = checkpoint.config, load_tokenizer(checkpoint)
        stored = checkpoint.num_parameters
    if tokenizer.start_of_turn_id is None:
        raise ConfigError(f"{model} must have <start_of_turn> and <end_of_turn> in its vocabulary to learn chats.")
    begun = recipe or new_recipe(options, config, "", num_parameters=stored)
    begun = _begun(replace(begun, start=str(resolved.path), data=""), config, model, settings)
    split, report = read_split(
        data,
        tokenizer,
        is_pairs=isinstance(begun.method, DPO),
        validation=options.validation,
        bad=options.bad,
        prefix=prompt_ids(begun.adapter, config),
        tool_style=options.tool_style,
        progress=progress,
    )
    chosen = _chosen_before(out, options, report) if out is not None else None
    made, split = _sized(begun, options, split, report, chosen, budget, fixed=recipe is not None)
    made = with_settings(made, settings)
    about: dict[str, Any] = {"vocab_size": config.vocab_size, "tokenizer": tokenizer_digest(tokenizer)}
    source = _source(split.learn, split.group, made, about)
    held = _source(split.held, split.group, made, about) if len(split.held) else None
    shown = split.held if held else split.learn
    return Prepared(
        model=model,
        name=_published_name(model, resolved.path),
        path=resolved.path,
        options=options,
        recipe=made,
        source=source,
        held=held,
        report=report,
        samples=choose_samples(shown, options.samples, tokenizer, group=split.group, vocab=config.vocab_size),
        tokenizer=tokenizer,
        num_parameters=stored,
        needed=needed_bytes(made),
        budget=budget,
    )


def tune(
    prepared: Prepared,
    out: Path,
    *,
    observe: Sequence[Callable[[Mapping[str, Any]], None]] = (),
    should_stop: Callable[[], bool] = lambda: False,
    command: str = "",
    progress: Progress | None = None,
    measure_peak: bool = True,
) -> Outcome:
    """Train until the steps are done, validation says enough, or `should_stop`; go on where a run in `out` was.

    Raises as `train` does.
    """
    recipe, source, held = prepared.recipe, prepared.source, prepared.held
    out.mkdir(parents=True, exist_ok=True)
    claim(out, recipe, source.digest)  # before anything is computed
    _note_choices(prepared, out)
    base = None
    with open_checkpoint(prepared.path) as checkpoint:
        if recipe.adapter is not None:
            base = read_base(checkpoint, recipe.adapter, dtype=recipe.dtype)
        if isinstance(recipe.method, DPO):
            _add_references(prepared, base, out, progress)
    history = restored_history(out)
    examiner = Examiner(prepared, base, out / prepared.final, history, should_write=held is not None)
    before = _loss_before(prepared, base, examiner, out)
    run = Run(
        recipe,
        source,
        initial=None if base is not None else lambda: stored_params(recipe),
        base=base,
        examine=examiner,
    )
    result = train(
        run,
        out,
        observe=observe,
        should_stop=lambda: should_stop() or examiner.is_enough,
        measure_peak=measure_peak,
    )
    is_over = result.is_done or examiner.is_enough
    step = int(result.state.step)
    if is_over and held is None:
        write_trained(prepared, result.state, out / prepared.final)
    best_step = examiner.best_step if held is not None else step
    outcome = Outcome(
        is_over, examiner.is_enough and not result.is_done, step, best_step, before, examiner.best, out / prepared.final
    )
    if is_over:
        write_card(prepared, outcome, out, command)
    return outcome


def _begun(recipe: Recipe, config: Any, model: str, settings: Sequence[str]) -> Recipe:
    """The recipe with the settings that change what the data becomes, checked; the others come when sizes are there."""
    for name, option in (("tokens", "--length"), ("start", "the model"), ("data", "the files"), ("model", "the model")):
        if any(setting.partition("=")[0].partition(".")[0] == name for setting in settings):
            raise ConfigError(f"{name} of a tuning run is not a setting: it is said with {option}.")
    recipe = with_settings(recipe, [one for one in settings if one.startswith(("adapter.", "method."))])
    if recipe.model != config:
        raise ConfigError(f"the recipe is for a model of another shape than {model}: its sizes must be the model's.")
    if isinstance(recipe.method, DPO) and recipe.adapter is None:
        raise ConfigError(
            "preferences are learned by an adapter: its frozen base is the reference. Add adapter=LoRA() to the recipe."
        )
    if isinstance(recipe.method, DPO) and prompt_ids(recipe.adapter, config):
        raise ConfigError("preferences cannot be learned by a tuned prompt: the reference does not know its tokens.")
    return recipe


def _published_name(model: str, path: Path) -> str:
    repository = hub.repository_of(model)
    is_pulled = repository is not None and hub.pulled(repository) == path
    return repository.id if repository is not None and is_pulled else str(path)


def _sized(
    recipe: Recipe,
    options: TuneOptions,
    split: Split,
    report: DataReport,
    chosen: Mapping[str, Any] | None,
    budget: int,
    *,
    fixed: bool,
) -> tuple[Recipe, Split]:
    """The recipe with all its sizes, and what fits into its rows."""
    if chosen is not None:
        recipe = replace(recipe, tokens=int(chosen["tokens"]))
    elif not fixed:
        positions = (split.learn.sizes - 1).reshape(-1, split.group).sum(axis=1)
        recipe = replace(recipe, tokens=choose_length(options, recipe, positions, budget))
    split = split.fitted(recipe.tokens, options.long, report)
    one = ChatSource(
        split.learn, length=recipe.tokens, batch_rows=1, seed=recipe.seed, vocab_size=0, tokenizer="", group=split.group
    )
    if fixed:
        if options.epochs is not None:
            recipe = replace(recipe, steps=max(1, ceil(options.epochs * one.num_rows / recipe.rows)))
        return replace(recipe, steps=options.steps or recipe.steps), split
    if chosen is not None:
        names = ("rows", "accumulate", "steps")
        sizes = {name: int(chosen[name]) for name in names}
        every = int(chosen["examine_every"])
        how = replace(recipe.execution, examine_every=every, checkpoint_every=every)
        schedule = replace(recipe.schedule, warm_up=int(chosen["warm_up"]))
        return replace(recipe, **sizes, schedule=schedule, execution=how), split
    return choose_sizes(options, recipe, one.num_rows, budget), split


def _source(texts: Texts, group: int, recipe: Recipe, about: dict[str, Any]) -> ChatSource:
    about = {**about, "length": recipe.tokens, "batch_rows": recipe.rows, "seed": recipe.seed}
    return PairSource(texts, **about) if group == 2 else ChatSource(texts, **about)


def _asked(options: TuneOptions, report: DataReport) -> dict[str, Any]:
    return {"options": asdict(options), "files": sorted(report.files.values())}


def _chosen_before(out: Path, options: TuneOptions, report: DataReport) -> Mapping[str, Any] | None:
    """What a run in `out` chose for the same options and files: memory may be another today, the run is not."""
    if not (out / CHOSEN).is_file():
        return None
    before = read_json(out / CHOSEN, "what a tuning run chose")
    same = before.get("asked") == json.loads(json.dumps(_asked(options, report)))
    return before["chosen"] if same else None


def _note_choices(prepared: Prepared, out: Path) -> None:
    """Write down what was asked and chosen, where that is not there yet."""
    if (out / CHOSEN).is_file():
        return
    recipe, how = prepared.recipe, prepared.recipe.execution
    names = ("tokens", "rows", "accumulate", "steps")
    chosen = {name: getattr(recipe, name) for name in names}
    chosen |= {"examine_every": how.examine_every, "warm_up": recipe.schedule.warm_up}
    asked = _asked(prepared.options, prepared.report)
    replace_json(out / CHOSEN, {"asked": asked, "chosen": chosen, "model": prepared.model, "recipe": flat(recipe)})
    replace_json(out / DATA, prepared.report.to_json())


def _add_references(prepared: Prepared, base: Base | None, out: Path, progress: Progress | None) -> None:
    """Let the sources of a run on preferences know what the base says of them: computed once, and kept."""
    assert base is not None, "checked in prepare"
    recipe = prepared.recipe
    for name, source in (("learn", prepared.source), ("held", prepared.held)):
        if source is None:
            continue
        assert isinstance(source, PairSource)
        path = out / f"reference-{name}-{source.digest[:16]}.npy"
        if not path.is_file():
            rows = recipe.rows // recipe.accumulate
            found = reference_log_probs(base.model, source, rows_at_once=rows, progress=progress)
            with appearing(path) as partial, partial.open("wb") as file:
                np.save(file, found)
        source.reference = np.load(path)


def _loss_before(prepared: Prepared, base: Base | None, examiner: Examiner, out: Path) -> float | None:
    """The validation loss of the model before the first step, noted in OUT/tune.json."""
    if prepared.held is None:
        return None
    noted = read_json(out / CHOSEN, "what a tuning run chose")
    if "before" not in noted:
        params = new_params(prepared.recipe, base) if base is not None else stored_params(prepared.recipe)
        noted["before"] = examiner.figures(params)["validation_loss"]
        replace_json(out / CHOSEN, noted)
    return noted["before"]
