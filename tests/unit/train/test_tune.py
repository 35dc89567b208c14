"""Tuning runs: what they write, that a stopped one goes on to the same bits, early stop, choices, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_model import chat_config, lessons, letters_tokenizer, save_chat_model

from gemworks.cli.main import run_command
from gemworks.data.chat_rendering import render
from gemworks.errors import CapacityError, ConfigError
from gemworks.model.config import GEMMA3_1B, GEMMA3_270M
from gemworks.train import metrics
from gemworks.train.adapters.kinds import LoRA, PromptTuning
from gemworks.train.adapters.peft import read_trained
from gemworks.train.assemble import find_recipe
from gemworks.train.tune import prepare, tune
from gemworks.train.tune_examiner import Examiner
from gemworks.train.tune_samples import Speaker, choose_samples
from gemworks.train.tuning import METHODS, TuneOptions, choose_length, choose_sizes, new_recipe
from gemworks.weights.checkpoint import open_checkpoint

BUDGET = 10**9
FP32 = ["dtype=float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_chat_model(tmp_path_factory.mktemp("model") / "chat")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "lessons.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lessons(40)))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    said = [one["messages"] for one in lessons(30)]
    records = [{"prompt": [q], "chosen": [a], "rejected": [a | {"content": "no"}]} for q, a in said]
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def prepared(model, data, out=None, *, settings=(), **options):
    # Two targets: a step compiles in half the time of seven.
    options = {"targets": "q,v"} | options
    options = {"validation": 0.2, "samples": 0, "length": 64, "batch": 128, "steps": 6, "rate": 1e-2} | options
    return prepare(str(model), [str(data)], TuneOptions(**options), out=out, budget=BUDGET, settings=[*FP32, *settings])


def go(model, data, out, *, stop_after=10**9, settings=(), **options):
    seen = []
    made = prepared(model, data, out, settings=settings, **options)
    outcome = tune(
        made,
        out,
        observe=[seen.append],
        should_stop=lambda: len(seen) >= stop_after,
        command="gemworks tune ...",
        measure_peak=False,
    )
    return made, outcome, seen


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """A LoRA run of 6 steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, *go(model, data, out)


def test_run_writes_an_adapter_a_card_and_what_became_of_the_data(whole, model):
    out, made, outcome, _ = whole
    assert outcome.is_done and outcome.step == 6 and outcome.path == out / "adapter"
    adapter, params = read_trained(out / "adapter", made.recipe.model)
    assert adapter.rank == 16 and any(np.asarray(array).any() for name, array in params.items() if name.endswith(".b"))
    card = (out / "adapter" / "README.md").read_text()
    report = json.loads((out / "data.json").read_text())
    [digest] = report["files"].values()
    for text in (digest, "gemworks tune ...", "LoRA of rank 16", f"| lines read | {report['read']} |", "after step"):
        assert text in card, text
    assert report["used"] + report["held_out"] == report["read"] == 40
    assert f"base_model: {model}" in card


def test_records_tell_validation(whole):
    out, made, outcome, _ = whole
    records = metrics.read(out / "metrics.jsonl")
    examined = [one for one in records if "validation_loss" in one]
    assert [one["step"] for one in examined] == [1, 2, 3, 4, 5, 6] and made.recipe.execution.examine_every == 1
    assert outcome.best == min(one["validation_loss"] for one in examined) < outcome.before


def test_stopped_and_continued_is_bitwise_the_same(whole, model, data, tmp_path):
    out = tmp_path / "run"
    _, first, _ = go(model, data, out, stop_after=2)
    assert not first.is_done and 2 <= first.step < 6
    assert not (out / "adapter" / "README.md").exists()
    _, second, _ = go(model, data, out)
    assert second.is_done and second.best == whole[2].best and second.best_step == whole[2].best_step
    one, other = (folder / "adapter" / "adapter_model.safetensors" for folder in (out, whole[0]))
    assert one.read_bytes() == other.read_bytes()


def test_other_options_in_the_same_directory_are_refused_with_the_difference(whole, model, data):
    with pytest.raises(ConfigError, match=r"optimizer\.peak   0\.01 -> 0\.5"):
        go(model, data, whole[0], rate=0.5)


def test_choices_are_made_once(whole, model, data):
    """Memory may be another when a run goes on: its sizes stay."""
    out, made, *_ = whole
    options = replace(made.options)
    again = prepare(str(model), [str(data)], options, out=out, budget=1, settings=FP32)
    assert again.recipe == made.recipe and again.source.digest == made.source.digest


@pytest.mark.exhaustive
def test_run_that_finds_nothing_better_ends_early_and_keeps_the_best(model, data, tmp_path):
    options = {"steps": 40, "rate": 3.0, "patience": 2, "samples": 0}
    _, outcome, seen = go(model, data, tmp_path, settings=["execution.examine_every=1"], **options)
    assert outcome.is_done and outcome.stopped_early and outcome.step < 40
    losses = [one["validation_loss"] for one in seen]
    assert outcome.best == min(losses) and outcome.best_step == 1 + int(np.argmin(losses))
    assert len(losses) - outcome.best_step == 2
    _, again, more = go(model, data, tmp_path, settings=["execution.examine_every=1"], **options)
    assert again == outcome and not more
    assert "validation found nothing better" in (outcome.path / "README.md").read_text()


@pytest.mark.exhaustive
def test_full_run_writes_a_model_that_loads(model, data, tmp_path):
    _, outcome, seen = go(model, data, tmp_path, method="full", steps=2, samples=1)
    assert outcome.path == tmp_path / "model"
    assert seen[-1]["loss"] < seen[0]["loss"]
    [sample] = seen[-1]["samples"]
    assert sample["wanted"].isupper() and isinstance(sample["answer"], str)
    with open_checkpoint(outcome.path) as after, open_checkpoint(model) as before:
        assert after.is_chat == before.is_chat and after.generation == before.generation
        assert not np.array_equal(after.read("embed.weight"), before.read("embed.weight"))
    assert (outcome.path / "tokenizer.json").is_file()


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["dora", "qlora", "prompt"])
def test_other_adapters_learn(model, data, tmp_path, method):
    _, outcome, _ = go(model, data, tmp_path, method=method, steps=4, samples=0, rate=3e-2, soft_tokens=4)
    assert outcome.is_done and outcome.best < outcome.before
    assert (outcome.path / "adapter_config.json").is_file()


@pytest.mark.exhaustive
def test_preferences_are_learned_beside_the_frozen_base(model, pairs, tmp_path):
    _, outcome, seen = go(model, pairs, tmp_path, method="dpo", steps=4, samples=0, length=64)
    assert seen[0]["loss"] == pytest.approx(np.log(2), abs=1e-5), "an adapter that adds nothing is its reference"
    assert outcome.before == pytest.approx(np.log(2), abs=1e-5)
    assert seen[-1]["reward_better"] - seen[-1]["reward_worse"] == pytest.approx(seen[-1]["margin"], abs=1e-5)
    assert seen[-1]["margin"] > 0 and seen[-1]["loss"] < seen[0]["loss"]
    assert len(list(tmp_path.glob("reference-*.npy"))) == 2


@pytest.mark.exhaustive
def test_samples_are_the_likeliest_words(model, data):
    """Against a forward pass over the whole text for each word."""
    from gemworks.model.gemma3 import full_batch
    from gemworks.train.assemble import stored_params
    from gemworks.train.forward import model_of

    made = prepared(model, data, method="full", samples=2)
    params = stored_params(made.recipe)
    got = Speaker(made.recipe, made.samples, made.tokenizer).answers(params, None)
    whole = model_of(jax.tree.map(jnp.asarray, params), made.recipe.model)

    @jax.jit
    def likeliest(ids_T):
        h_TD, _ = whole(full_batch(ids_T, made.recipe.model))
        return whole.logits(h_TD).argmax(axis=-1)

    for sample, said in zip(made.samples, got, strict=True):
        ids = list(sample.ids)
        for _ in range(4):
            ids.append(int(likeliest(np.pad(np.array(ids, np.int32), (0, 64 - len(ids))))[len(ids) - 1]))
            if ids[-1] in (made.tokenizer.eos_id, made.tokenizer.end_of_turn_id):
                break
        words = [i for i in ids[len(sample.ids) :] if i < made.tokenizer.size]
        assert said.startswith(made.tokenizer.decode(words))


@pytest.mark.parametrize(
    ("losses", "best_step", "is_enough"),
    [([], 0, False), ([3.0, 2.0, 2.5], 2, False), ([3.0, 2.0, 2.5, 2.1], 2, True), ([2.0, 3.0, 1.0, 1.5], 3, False)],
)
def test_enough_is_patience_examinations_without_a_better_loss(model, data, losses, best_step, is_enough):
    made = prepared(model, data, patience=2)
    history = list(enumerate(losses, 1))
    examiner = Examiner(made, None, Path("unused"), history, should_write=True)
    assert (examiner.best_step, examiner.is_enough) == (best_step, is_enough)
    without = replace(made, options=replace(made.options, patience=0))
    assert not Examiner(without, None, Path("unused"), history, should_write=True).is_enough


def test_samples_are_prompts_up_to_the_first_answer(model, data):
    made = prepared(model, data, samples=3, validation=0.0)
    tokenizer = letters_tokenizer()
    first = lessons(1)[0]["messages"]
    assert made.samples[0].ids == tuple(render(tokenizer, first).ids[: len(made.samples[0].ids)])
    assert made.samples[0].wanted == first[1]["content"]
    split = made.source.texts
    assert choose_samples(split, 0, tokenizer, group=1, vocab=tokenizer.size) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan_for_the_released_sizes(method):
    for config, parameters in ((GEMMA3_270M, 270e6), (GEMMA3_1B, 1e9)):
        recipe = new_recipe(TuneOptions(method=method), config, "m", num_parameters=int(parameters))
        length = choose_length(TuneOptions(method=method), recipe, np.array([100, 700]), 200 * 10**9)
        assert length == 704
        sized = choose_sizes(TuneOptions(method=method), replace(recipe, tokens=length), 1000, 200 * 10**9)
        assert sized.rows * sized.tokens <= 16_384 and sized.accumulate == 1
        assert sized.steps == -(-(1000 if method == "dpo" else 3000) // sized.rows)
        tight = choose_sizes(TuneOptions(method=method), replace(recipe, tokens=length), 1000, 0)
        assert tight.accumulate == tight.rows, "one row at a time where memory is short"


def test_rows_are_cut_to_memory_and_a_model_too_large_is_refused_with_what_to_do():
    options = TuneOptions(method="full")
    recipe = new_recipe(options, GEMMA3_1B, "m", num_parameters=10**9)
    with pytest.raises(CapacityError, match=r"needs \d+\.\d GB even with one row of 256 tokens.*\n.*--method lora"):
        choose_length(options, recipe, np.array([8000]), 10**9)
    lora = TuneOptions(method="lora")
    recipe = new_recipe(lora, GEMMA3_1B, "m", num_parameters=10**9)
    lengths = [choose_length(lora, recipe, np.array([16_000]), budget * 10**9) for budget in (5, 8, 200)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1] == 16_000


def test_few_rows_make_small_batches():
    recipe = replace(new_recipe(TuneOptions(), chat_config(), "m", num_parameters=30_000), tokens=64)
    assert choose_sizes(TuneOptions(), recipe, 3, BUDGET).rows == 1
    assert choose_sizes(TuneOptions(batch=64 * 64), recipe, 3, BUDGET).rows == 2, "no row twice in one batch"
    assert choose_sizes(TuneOptions(steps=7), recipe, 100, BUDGET).steps == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lore"}, "method must be one of lora, dora"),
        ({"rate": -1.0}, "rate of a tuning run must be greater than 0"),
        ({"validation": 1.0}, "validation must be a share"),
        ({"bad": "mend"}, 'bad must be one of stop, skip, got "mend"'),
        ({"tool_style": "xml"}, "tool_style must be one of python, json"),
        ({"length": 512}, "length must be at most the model's 256 tokens"),
    ],
)
def test_what_is_asked_wrongly_is_refused(model, data, options, message):
    with pytest.raises(ConfigError, match=message):
        prepared(model, data, **options)


def test_dry_run_prints_the_plan_and_writes_nothing(model, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_command(["tune", str(model), str(data), "--out", str(out), "--dry-run", "--method", "full"]) == 0
    told = capsys.readouterr().out
    for text in ("all parameters", "of 40 lines", "epochs", "by arithmetic", "every"):
        assert text in told, told
    assert not out.exists()


def test_bad_lines_stop_the_command_with_their_places(model, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    said = lessons(1)[0]["messages"]
    path.write_text(json.dumps({"messages": said}) + "\n" + json.dumps({"messages": said[:1]}) + "\n")
    assert run_command(["tune", str(model), str(path), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert f"{path}, line 2: messages: at least one assistant message must be there" in told
    assert "--bad skip" in told


def test_recipe_chooses_in_our_place(model, data):
    recipe = replace(new_recipe(TuneOptions(method="prompt"), chat_config(), "m", num_parameters=1), tokens=96, rows=2)
    made = prepare(str(model), [str(data)], TuneOptions(epochs=2.0, samples=0), budget=0, recipe=recipe)
    assert isinstance(made.recipe.adapter, PromptTuning) and (made.recipe.tokens, made.recipe.rows) == (96, 2)
    assert made.recipe.steps == -(-2 * made.source.num_rows // 2)
    assert (made.source.texts.ids_N.reshape(-1)[:20] == np.arange(336, 356)).all(), "the prompt's ids come first"
    with pytest.raises(ConfigError, match="the recipe is for a model of another shape"):
        other = replace(recipe, model=GEMMA3_270M)
        prepare(str(model), [str(data)], TuneOptions(), budget=0, recipe=other)


def test_recipes_for_the_released_models(repo_root):
    folder = repo_root / "recipes"
    made = [find_recipe(f"gemma3_1b_lora:{name}", folder) for name in ("recipe", "qlora", "dora")]
    assert all(isinstance(one.adapter, LoRA) and one.model == GEMMA3_1B for one in made)
    assert find_recipe("gemma3_270m_full", folder).adapter is None


def accuracy(made, outcome, params, base) -> float:
    """Share of all conversations whose greedy answer is the data's to the letter."""
    samples = choose_samples(made.source.texts, 10**6, made.tokenizer, group=1, vocab=made.recipe.model.vocab_size)
    got = Speaker(made.recipe, samples, made.tokenizer).answers(params, base)
    return float(np.mean([said == one.wanted for said, one in zip(got, samples, strict=True)]))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("method", "rate"), [("full", 3e-3), ("lora", 1e-2), ("dora", 1e-2), ("qlora", 1e-2)])
def test_fifty_examples_are_learned_by_heart(tmp_path, method, rate):
    from gemworks.train.adapters.base import read_base
    from gemworks.train.assemble import stored_params

    model = save_chat_model(tmp_path / "model", chat_config(model_dim=64, head_dim=32))
    path = tmp_path / "lessons.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lessons(50)))
    options = {
        "method": method,
        "targets": "",
        "steps": 600,
        "rate": rate,
        "validation": 0.0,
        "samples": 0,
        "batch": 512,
        "rank": 32,
    }
    made, outcome, _ = go(model, path, tmp_path / "run", **options)
    assert len(made.source.texts) == 50
    base = None
    if method == "full":
        params = stored_params(replace(made.recipe, start=str(outcome.path)))
    else:
        params = read_trained(outcome.path, made.recipe.model)[1]
        with open_checkpoint(model) as checkpoint:
            base = read_base(checkpoint, made.recipe.adapter, dtype="float32")
    assert accuracy(made, outcome, params, base) == 1.0
