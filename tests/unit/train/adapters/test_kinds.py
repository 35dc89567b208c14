"""What an adapter may be: targets by pattern, what is refused and how it is said."""

import pytest
from small_models import small_config

from gemworks.errors import ConfigError
from gemworks.parallel.mesh import MeshShape
from gemworks.train.adapters.kinds import LoRA, PromptTuning, base_plan, targeted
from gemworks.train.recipe import Execution, Optimizer, Recipe, differences, flat, with_settings

CONFIG = small_config(num_layers=7)


@pytest.mark.parametrize(
    ("targets", "count", "first"),
    [
        (("q", "v"), 14, "layers.0.attn.q"),
        ("q_proj, down_proj", 14, "layers.0.attn.q"),
        ("layers.[0-3].*", 28, "layers.0.attn.q"),
        ("layers.5.ffw.*", 3, "layers.5.ffw.gate"),
        ("mlp.up_proj", 7, "layers.0.ffw.up"),
        ("model.layers.2.self_attn.*", 4, "layers.2.attn.q"),
        ("*", 49, "layers.0.attn.q"),
        (("v", "layers.6.*"), 13, "layers.0.attn.v"),
    ],
)
def test_targets(targets, count, first):
    names = targeted(LoRA(targets=targets), CONFIG)
    assert len(names) == len(set(names)) == count and names[0] == first


@pytest.mark.parametrize("targets", ["query", "layers.9.*", "p", "embed", "attn"])
def test_a_pattern_that_matches_nothing_is_named(targets):
    with pytest.raises(ConfigError, match=f'the target "{targets}" must match the name of a matrix') as refused:
        targeted(LoRA(targets=("q", targets)), CONFIG)
    assert "q, k, v, o, gate, up, down" in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(rank=0), "rank >= 1 and an alpha that is not 0, got 0"),
        (lambda: LoRA(alpha=float("nan")), "got 16 and nan"),
        (lambda: LoRA(dropout=1.0), "at least 0 and less than 1, got 1.0"),
        (lambda: LoRA(targets=""), "LoRA needs targets, got none"),
        (lambda: LoRA(base="int3"), 'got "int3"'),
        (lambda: LoRA(base="int4-b32,embed=q"), "must be one of"),
        (lambda: PromptTuning(tokens=0), "at least 1 token, got 0"),
        (lambda: PromptTuning(init="text"), 'must be sample or random, got "text"'),
        (lambda: PromptTuning(base="int4-b32,what"), "PATTERN=FORMAT"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_scales():
    assert LoRA(rank=16, alpha=8.0).scale == 0.5
    assert LoRA(rank=16, alpha=8.0, rslora=True).scale == 2.0


def test_formats_of_a_base():
    plan = base_plan(LoRA(base="int4-b32,embed=int8-b32,layers.*.attn.v=int8"))
    assert plan is not None
    formats = [plan.format_of(f"{n}.weight", (64, 64)) for n in ("embed", "layers.1.attn.v", "layers.1.ffw.up")]
    assert formats == ["int8-b32", "int8", "int4-b32"]
    assert base_plan(LoRA()) is None


def test_a_recipe_with_an_adapter_is_data():
    recipe = Recipe(model=CONFIG, adapter=LoRA(rank=4, targets="q,v"))
    told = flat(recipe)
    assert told["adapter"] == "LoRA" and told["adapter.rank"] == 4 and told["adapter.targets"] == ("q", "v")
    changed = with_settings(recipe, ["adapter.rank=8", "adapter.dora=True"])
    assert changed.adapter == LoRA(rank=8, targets=("q", "v"), dora=True)
    assert "adapter.rank   4 -> 8" in differences(told, flat(changed))
    plain = flat(Recipe(model=CONFIG))
    assert not any(name.startswith("adapter") for name in plain), "runs from before are continued"
    assert "adapter   (not set) -> LoRA" in differences(plain, told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": Optimizer(name="muon")}, "adapters are trained with adamw"),
        ({"execution": Execution(mesh=MeshShape(fsdp=2))}, "adapters are trained on one device"),
    ],
)
def test_a_recipe_that_does_not_go_with_adapters(changes, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(model=CONFIG, adapter=LoRA(), **changes)
