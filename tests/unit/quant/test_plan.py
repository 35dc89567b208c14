"""Which tensor takes which format: defaults, hand-written patterns, what is printed and what is refused."""

import pytest

from gemworks.errors import ConfigError
from gemworks.model.config import GEMMA3_1B, RELEASED
from gemworks.quant.plan import PlanRow, QuantPlan, kept_bytes
from gemworks.weights.names import expected_shapes

SHAPES = expected_shapes(GEMMA3_1B)


def formats(plan: QuantPlan) -> dict[str, str | None]:
    return {name: plan.format_of(name, shape) for name, shape in SHAPES.items()}


def test_default_is_four_bits_with_an_eight_bit_table():
    found = formats(QuantPlan.parse())
    assert found["embed.weight"] == "int8"
    assert {found[name] for name in found if name.startswith("layers.") and name.endswith(".weight")} == {"int4-b32"}
    assert {found[name] for name in found if name.endswith(".scale")} == {None}
    assert QuantPlan.parse().format_of("head.weight", (64, 32)) == "int8"


@pytest.mark.parametrize("pattern", ["layers.*.attn.v", "layers.*.attn.v.weight", "*.v"])
def test_a_hand_written_pattern_comes_first(pattern):
    found = formats(QuantPlan.parse("int4", "sfp8", [f"{pattern}=int8-b32", "layers.0.*=bf16"]))
    assert {name for name in found if found[name] == "int8-b32"} == {f"layers.{i}.attn.v.weight" for i in range(26)}
    assert found["layers.0.ffw.up.weight"] == "bf16" and found["layers.1.ffw.up.weight"] == "int4"
    assert found["embed.weight"] == "sfp8" and found["layers.0.attn.q_norm.scale"] is None


def test_no_pattern_reaches_a_norm():
    assert {f for name, f in formats(QuantPlan.parse(overrides=["*=int8"])).items() if name.endswith(".scale")} == {
        None
    }


def test_the_printed_plan_adds_up():
    rows = QuantPlan.parse(overrides=["layers.*.ffw.down=int8"]).describe(SHAPES)
    assert [(row.pattern, row.format, row.tensors) for row in rows] == [
        ("layers.*.ffw.down", "int8", 26),
        ("embed.weight", "int8", 1),
        ("layers.*", "int4-b32", 26 * 6),
        ("*.scale", "as stored", 26 * 6 + 1),
    ]
    assert rows[0] == PlanRow("layers.*.ffw.down", "int8", 26, 26 * 1152 * 6912, 26 * (1152 * 6912 + 4 * 1152))
    assert sum(row.weights for row in rows) == 999_885_952
    others = [(1024, 1152), (256, 1152), (256, 1152), (1152, 1024), (6912, 1152), (6912, 1152)]
    assert rows[2].num_bytes == 26 * sum(outputs * inputs // 32 * 18 for outputs, inputs in others)


def test_equal_plans_have_equal_keys_and_others_do_not():
    assert QuantPlan.parse().key == QuantPlan.parse("int4-b32", "int8", []).key
    keys = {QuantPlan.parse(f, e, s).key for f in ("int4", "int8") for e in ("int4", "int8") for s in ([], ["*=bf16"])}
    assert len(keys) == 8
    assert QuantPlan.parse().key == "embed.weight=int8,head.weight=int8,layers.*=int4-b32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "q4_0"}, r'^--format must be one of int4-b32, .*, bf16, got "q4_0"\.'),
        ({"embed": "fp8"}, r'^--embed must be one of .*, got "fp8"\.'),
        ({"overrides": ["layers.0"]}, r'^--set must be PATTERN=FORMAT, as in .*, got "layers\.0"\.'),
        ({"overrides": ["=int4"]}, r'^--set must be PATTERN=FORMAT, .*, got "=int4"\.'),
        ({"overrides": ["*.v=int3"]}, r'^--set \*\.v must be one of .*, got "int3"\.'),
    ],
)
def test_what_is_no_plan_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        QuantPlan.parse(**arguments)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(
        ConfigError, match=r'"layers\.\*\.attn\.w" must match the name of a matrix.*\n.*embed, layers\.0'
    ):
        QuantPlan.parse(overrides=["layers.*.attn.w=int8"]).describe(SHAPES)
    with pytest.raises(ConfigError, match=r'"final_norm\.scale" must match the name of a matrix'):
        QuantPlan.parse(overrides=["final_norm.scale=int8"]).describe(SHAPES)


def test_a_shape_that_a_format_cannot_hold_is_named():
    with pytest.raises(ConfigError, match=r"^layers\.0\.attn\.q\.weight must be a matrix .* int4-b32, got \[64, 48\]"):
        QuantPlan.parse().format_of("layers.0.attn.q.weight", (64, 48))


def test_the_sizes_in_the_docs_are_those_of_the_plans(repo_root):
    """docs/quantize.md lists every released size by layer and embedding format."""
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]]
        for line in (repo_root / "docs" / "quantize.md").read_text().splitlines()
        if line.endswith("GB |")
    ]
    assert len(rows) == 6
    for layers, embed, *sizes in rows:
        for config, size in zip(RELEASED.values(), sizes, strict=True):
            found = sum(map(kept_bytes, QuantPlan.parse(layers, embed).describe(expected_shapes(config)))) / 1e9
            assert size == (f"{found:.2f} GB" if found < 10 else f"{found:.1f} GB"), (layers, embed)
