"""Recipes: settings by name, refusals, the plan that is printed; schedules; the tables of plots and extension."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from nano_runs import RandomRows, nano_recipe

from gemworks.cli.main import run_command
from gemworks.errors import ConfigError
from gemworks.model.config import GEMMA3_1B
from gemworks.train.assemble import find_recipe
from gemworks.train.extension import extended, perplexity_by_position
from gemworks.train.forward import model_of
from gemworks.train.loss import Call
from gemworks.train.optimizer import schedule
from gemworks.train.plots import curve, write_report
from gemworks.train.recipe import Schedule, differences, flat, with_settings
from gemworks.train.speed import flops_per_token
from gemworks.train.state import random_params


def test_settings_are_changed_by_name():
    made = with_settings(
        nano_recipe(),
        ["optimizer.peak=1", "schedule.kind=linear", "execution.mesh=fsdp=2,tensor=2", "method.z_loss=1e-4"],
    )
    assert made.optimizer.peak == 1.0 and made.schedule.kind == "linear" and made.method.z_loss == 1e-4
    assert (made.execution.mesh.fsdp, made.execution.mesh.tensor) == (2, 2)
    either = [
        with_settings(nano_recipe(), order)
        for order in (["steps=2", "schedule.warm_up=1"], ["schedule.warm_up=1", "steps=2"])
    ]
    assert either[0] == either[1], "2 steps would not do with the warm-up that was there"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.peek=1", 'no setting "optimizer.peek". Did you mean optimizer.peak?'),
        ("steps", 'written as key=value, such as optimizer.peak=3e-4; got "steps"'),
        ("steps=many", "steps must be of type int as 8 is, got 'many'"),
        ("accumulate=3", "accumulate must divide rows, got accumulate=3 and rows=8"),
        ("schedule.warm_up=8", "warm_up must be less than steps, got 8 and 8 steps"),
        ("steps=0", "steps of a recipe must be at least 1, got 0"),
        ("ema=1.0", "ema must be at least 0 and less than 1, got 1.0"),
    ],
)
def test_wrong_setting_is_explained(setting, message):
    with pytest.raises(ConfigError) as caught:
        with_settings(nano_recipe(), [setting])
    assert message in str(caught.value)


def test_differences_name_old_and_new_and_leave_execution_out():
    one, other = nano_recipe(), nano_recipe(seed=3, checkpoint_every=7)
    assert differences(flat(one), flat(other)) == ["seed   0 -> 3"]
    assert differences(json.loads(json.dumps(flat(one))), json.loads(json.dumps(flat(one)))) == []


def test_schedules_at_their_corners():
    rates = {
        kind: schedule(nano_recipe(steps=100, schedule=Schedule(kind=kind, warm_up=10, last=0.1)), 1.0)
        for kind in ("cosine", "linear", "constant", "wsd")
    }
    for kind, rate in rates.items():
        assert [float(rate(n)) for n in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1], rel=1e-6), kind
    at = {kind: [float(rate(n)) for n in (55, 79, 90, 100)] for kind, rate in rates.items()}
    assert at["linear"] == pytest.approx([0.55, 0.31, 0.2, 0.1], abs=1e-6)
    assert at["cosine"] == pytest.approx(
        [0.1 + 0.45 * (1 + math.cos(math.pi * (n - 10) / 90)) for n in (55, 79, 90, 100)]
    )
    assert at["constant"] == [1, 1, 1, 1]
    assert at["wsd"] == pytest.approx([1, 1, 0.55, 0.1], abs=1e-6)


def test_flops_of_1b_by_hand():
    """999,885,952 weights of which 152,320 are gains; 22 local layers of 512 keys, 4 global ones of half the row."""
    weights = 999_885_952 - (26 * (4 * 1152 + 2 * 256) + 1152)
    assert flops_per_token(GEMMA3_1B, 4096) == 6 * weights + 12 * 4 * 256 * (22 * 512 + 4 * 2048)


def test_extension_divides_positions_of_global_layers_only():
    config = extended(GEMMA3_1B)
    assert {spec.rope_scale for spec in config.layers if spec.is_local} == {1.0}
    assert {spec.rope_scale for spec in config.layers if not spec.is_local} == {8.0}
    assert config.max_positions == 8 * 32_768


@pytest.mark.exhaustive
def test_perplexity_by_position_sums_to_the_loss():
    recipe = nano_recipe()
    model = model_of({k: jnp.asarray(v) for k, v in random_params(recipe.model, 0).items()}, recipe.model)
    batches = [RandomRows(recipe).batch(step) for step in (0, 1)]
    found = perplexity_by_position(model, batches, [0, 4, 16, 32, 64])
    assert [bucket[:2] for bucket in found] == [(0, 4), (4, 16), (16, 32), (32, 64)]
    assert math.isnan(found[3][2]), "no target is there"
    total = weight = 0.0
    for rows in batches:
        for first, end, perplexity in found[:3]:
            here = rows.loss_mask_BT * ((rows.position_BT >= first) & (rows.position_BT < end))
            total, weight = total + math.log(perplexity) * here.sum(), weight + here.sum()
    loss = jax.jit(lambda model, rows: recipe.method(model, rows, Call(jax.random.key(0))))
    terms = [loss(model, rows) for rows in batches]
    assert total / weight == pytest.approx(
        float(sum(t.total for t in terms)) / float(sum(t.weight for t in terms)), rel=1e-4
    )


def test_report_shows_curves_and_recipe_and_escapes(tmp_path):
    records = [{"step": n, "loss": 1 / n, "nll": 1 / n, "grad_norm": None} for n in range(1, 2000)]
    write_report(tmp_path / "report.html", "<run>", {"seed": "<b>"}, records)
    text = (tmp_path / "report.html").read_text()
    assert "&lt;run&gt;" in text and "&lt;b&gt;" in text and text.count("<svg") == 1
    assert curve([(n, float(n)) for n in range(5000)]).count(",") < 700


def test_recipes_are_found_and_unknown_ones_are_explained(repo_root, monkeypatch, tmp_path):
    monkeypatch.chdir(repo_root)
    assert find_recipe("nano_pretrain").model.model_dim == 64
    assert find_recipe("gemma3_1b_pretrain:extension").model.max_positions == 262_144
    with pytest.raises(ConfigError, match=r'no recipe "nano_pretrian".*Did you mean nano_pretrain\?'):
        find_recipe("nano_pretrian")
    (tmp_path / "mine.py").write_text("def recipe():\n    return 3\n")
    with pytest.raises(ConfigError, match=r"recipe\(\) must be a function that returns a gemworks.train Recipe"):
        find_recipe(str(tmp_path / "mine.py"))


def test_dry_run_prints_recipe_memory_and_sharding(repo_root, monkeypatch, capsys):
    monkeypatch.chdir(repo_root)
    assert run_command(["train", "gemma3_1b_pretrain", "steps=10_000", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for part in ("optimizer.peak", "999,885,952 parameters", "replica 2 x fsdp 16 x seq 16", "layers.*.attn.q.weight"):
        assert part in out, part
    assert run_command(["train", "nano_pretrain", "execution.mesh=tensor=3", "--dry-run"]) == 2
    assert "the tensor axis must divide num_heads" in capsys.readouterr().err


def test_run_without_data_is_explained(repo_root, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(repo_root)
    assert run_command(["train", "nano_pretrain", "--out", str(tmp_path / "run")]) == 2
    assert "a recipe needs data" in capsys.readouterr().err
