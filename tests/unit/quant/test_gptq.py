"""GPTQ: valid formats, the algorithm's own identities, and less error at the output than rounding to the nearest."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_ids, random_model, small_config

from gemworks.errors import ConfigError
from gemworks.model.config import LayerSpec
from gemworks.model.gemma3 import build, full_batch
from gemworks.ops.weight import code_shapes
from gemworks.quant import calibration, perplexity
from gemworks.quant.calibration import Calibration, cut_into_chunks
from gemworks.quant.formats import CODE_RANGE, dequantize, unpack_nibbles
from gemworks.quant.gptq import best_scales, gptq, inverse_factor
from gemworks.quant.perplexity import measure
from gemworks.quant.plan import QuantPlan
from gemworks.quant.rtn import quantize

FORMATS = sorted(CODE_RANGE)


def problem(F=48, D=192, T=600, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and inputs that are correlated and of very different sizes, as a model's are."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(T, D // 3)) @ rng.normal(size=(D // 3, D)) + 0.3 * rng.normal(size=(T, D))
    inputs *= np.exp(rng.normal(size=D))
    return rng.normal(0, 0.03, (F, D)).astype(np.float32), inputs.astype(np.float32)


def output_error(found, weight, inputs) -> float:
    wanted = inputs @ weight.T
    return float(np.linalg.norm(inputs @ dequantize(found).T - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_the_output_is_nearer_than_that_of_rounding(format, act_order):
    """At least a quarter less error on inputs that the Hessian never saw."""
    weight, inputs = problem()
    seen, unseen = inputs[:500], inputs[500:]
    found = gptq(weight, seen.T @ seen, format, act_order=act_order)
    assert output_error(found, weight, unseen) < 0.75 * output_error(quantize(weight, format), weight, unseen)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_codes_and_scales_are_valid_in_the_format(format, act_order):
    weight, inputs = problem(F=7, D=160)
    found = gptq(weight, inputs.T @ inputs, format, act_order=act_order)
    codes, scales = code_shapes(format, 7, 160)
    assert ((found.codes.shape, found.codes.dtype), (found.scales.shape, found.scales.dtype)) == (codes, scales)
    low, high = CODE_RANGE[format]
    values = unpack_nibbles(found.codes).astype(int) - 8 if format.startswith("int4") else found.codes
    assert values.min() >= low and values.max() <= high and np.isfinite(found.scales).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_without_correlation_leave_nothing_to_make_up_for(format, act_order):
    """With a diagonal Hessian every column is rounded to the nearest code of its scale, in any order."""
    weight, _ = problem(F=5, D=96)
    found = gptq(weight, np.diag(np.linspace(1, 9, 96)), format, act_order=act_order)
    scales = found.scales.astype(np.float32)
    scales = np.repeat(scales, 32, axis=1) if format.endswith("-b32") else scales[:, None]
    nearest = np.rint(weight / scales).clip(*CODE_RANGE[format]) * scales
    off = np.abs(dequantize(found) - nearest)
    assert (off > 1e-6).mean() < 0.01  # ties may fall either way: w * (1 / s) is not w / s


def test_the_factor_inverts_the_damped_hessian():
    _, inputs = problem(D=160)
    hessian = (inputs.T @ inputs).astype(np.float64)
    upper = inverse_factor(hessian, 0.01).astype(np.float64)
    assert not np.tril(upper, -1).any()
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(160)
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(160), atol=2e-3)


def test_inputs_that_are_all_zero_round_to_the_nearest():
    weight, _ = problem(F=3, D=64)
    found = gptq(weight, np.zeros((64, 64), np.float32), "int8")
    assert np.abs(dequantize(found) - weight).max() <= found.scales.max() * 0.6  # half a step, and a little clipped


def test_fewer_inputs_than_columns_are_enough():
    weight, inputs = problem(T=20)
    found = gptq(weight, inputs.T @ inputs, "int4-b32")
    assert output_error(found, weight, inputs) < 0.5 * output_error(quantize(weight, "int4-b32"), weight, inputs)


def test_a_scale_found_is_no_worse_than_that_of_the_largest_weight():
    rng = np.random.default_rng(3)
    left, importance = rng.normal(size=(32, 500)).astype(np.float32), rng.uniform(0.1, 5, 32)
    left[:, 0] = 0

    def error(scale_F):
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.nan_to_num(np.rint(left / scale_F)).clip(-8, 7)
        return (importance[:, None] * (left - codes * scale_F) ** 2).sum(axis=0)

    largest = left[np.abs(left).argmax(axis=0), np.arange(500)]
    found, plain = error(best_scales(left, importance, -8, 7)), error(largest / -8)
    assert found[0] == 0 and (found <= plain * 1.02).mean() > 0.99 and found.sum() < 0.85 * plain.sum()


def test_what_is_not_finite_is_refused():
    weight, inputs = problem(F=3, D=64)
    weight[1, 1] = np.nan
    with pytest.raises(ConfigError, match=r"^layers\.1\.ffw\.up\.weight must have finite weights and inputs"):
        gptq(weight, inputs.T @ inputs, "int4", name="layers.1.ffw.up.weight")


LAYERS = (
    LayerSpec(window=8, rope_base=10_000.0),
    LayerSpec(window=None, rope_base=1e6),
    LayerSpec(window=8, rope_base=10_000.0),
)

# Few layers: every program that is compiled takes a second.
CONFIG = small_config(model_dim=64, head_dim=32, num_heads=2, num_kv_heads=1, vocab_size=96, layers=LAYERS)


@eqx.filter_jit
def hidden_state(model, ids):
    return model(full_batch(jnp.asarray(ids), CONFIG))[0]


def arrays_of(model) -> dict[str, np.ndarray]:
    names = build(CONFIG, lambda name, shape: name)
    return dict(zip(jax.tree.leaves(names), map(np.asarray, jax.tree.leaves(model)), strict=True))


def planned(*arguments) -> tuple[dict[str, np.ndarray], dict[str, str], np.ndarray]:
    arrays = arrays_of(random_model(CONFIG))
    plan = QuantPlan.parse(*arguments)
    formats = {name: plan.format_of(name, array.shape) for name, array in arrays.items()}
    ids = np.asarray([random_ids(CONFIG, 40, seed) for seed in range(8)])
    return arrays, {name: format for name, format in formats.items() if format}, ids


def test_the_text_goes_through_the_model_as_it_is_defined():
    """Layer by layer gives what the model gives: the two definitions of a block's order agree."""
    model = random_model(CONFIG)
    ids = np.asarray(random_ids(CONFIG, 40))
    x_TD = model.embed(jnp.asarray(ids))
    for block in model.layers:
        x_TD = calibration._through(block, x_TD, CONFIG)
    wanted = hidden_state(model, jnp.asarray(ids))
    np.testing.assert_allclose(model.final_norm(x_TD), wanted, rtol=0, atol=2e-5)


def test_outer_products_are_those_of_what_each_linear_reads():
    model = random_model(CONFIG)
    x_TD = model.embed(jnp.asarray(random_ids(CONFIG, 40)))
    block = model.layers[0]
    found = calibration._outer_products(block, x_TD, CONFIG)
    reads = np.asarray(block.attn_pre_norm(x_TD))
    np.testing.assert_allclose(found[0], reads.T @ reads, rtol=1e-4, atol=1e-4)
    assert [product.shape for product in found] == [(64, 64), (64, 64), (64, 64), (64, 64)]
    assert not any(np.allclose(found[0], other, rtol=0.1) for other in found[1:])


def test_a_model_comes_out_nearer_than_by_rounding():
    """The last hidden state of a seeded model on other text, int4 everywhere."""
    arrays, formats, ids = planned("int4-b32", "int8")
    made = Calibration(CONFIG, arrays.__getitem__, formats, ids)
    found = {name: made.quantized(name) for name in formats}
    assert {weight.format for name, weight in found.items() if name != "embed.weight"} == {"int4-b32"}
    plain = {name: quantize(arrays[name], format) for name, format in formats.items()}
    assert found["embed.weight"].codes.tobytes() == plain["embed.weight"].codes.tobytes()

    def hidden(weights):
        model = build(
            CONFIG, lambda name, shape: jnp.asarray(dequantize(weights[name]) if name in weights else arrays[name])
        )
        return np.stack([hidden_state(model, jnp.asarray(random_ids(CONFIG, 40, seed))) for seed in range(100, 104)])

    wanted = hidden({})
    ours, theirs = (np.linalg.norm(hidden(weights) - wanted) for weights in (found, plain))
    assert ours < 0.9 * theirs


def test_formats_that_gptq_does_not_know_are_rounded_and_bf16_is_left():
    arrays, formats, ids = planned("int8", "bf16", ["layers.1.*=bf16", "*.ffw.up=sfp8"])
    formats = {name: format for name, format in formats.items() if format != "bf16"}
    made = Calibration(CONFIG, arrays.__getitem__, formats, ids)
    for name in formats:
        found = made.quantized(name)
        assert found.format == formats[name] and not name.startswith(("layers.1.", "embed"))
        if found.format == "sfp8":
            assert found.codes.tobytes() == quantize(arrays[name], "sfp8").codes.tobytes()


def test_chunks_are_spread_over_the_text():
    chunks = cut_into_chunks(list(range(1000)), 7777, length=101, count=4)
    assert chunks.shape == (4, 101) and (chunks[:, 0] == 7777).all()
    assert chunks[:, 1].tolist() == [0, 300, 600, 900] and chunks[3, -1] == 999
    assert cut_into_chunks(list(range(40)), 2, length=512, count=4).tolist() == [[2, *range(40)]]
    with pytest.raises(ConfigError, match=r"calibration text must have at least 32 tokens, got 31\."):
        cut_into_chunks(list(range(31)), 2, length=512, count=4)


# The second case computes logits in parts of seven rows; another window, because a compiled program is kept.
@pytest.mark.parametrize(("window", "logit_bytes"), [(21, 1 << 26), (23, 4 * 96 * 7)])
def test_perplexity_is_that_of_the_models_logits(monkeypatch, window, logit_bytes):
    """Windows do not overlap, each begins with <bos>, and every token counts once."""
    monkeypatch.setattr(perplexity, "_LOGIT_BYTES", logit_bytes)
    model, ids, steps = random_model(CONFIG), random_ids(CONFIG, 50), []
    found = measure(
        model, ids, bos_id=2, text_bytes=120, window=window, progress=lambda done, total: steps.append((done, total))
    )
    total = 0.0
    for at in range(0, 50, window - 1):
        piece = ids[at : at + window - 1]
        padded = [2, *piece, *[0] * (39 - len(piece))]  # the model is causal
        logprobs = jax.nn.log_softmax(model.logits(hidden_state(model, jnp.asarray(padded))))
        total -= sum(float(logprobs[t, token]) for t, token in enumerate(piece))
    assert found.tokens == 50 and found.nll == pytest.approx(total, rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(total / 50)) and found.perplexity > 1
    assert found.bits_per_byte == pytest.approx(total / np.log(2) / 120)
    assert steps == [(window - 1, 50), (2 * window - 2, 50), (50, 50)]


def test_a_quantized_model_is_measured_as_what_it_stands_for():
    arrays, formats, _ = planned("int4-b32", "int8")
    quantized = {name: quantize(arrays[name], format) for name, format in formats.items()}
    one = build(CONFIG, lambda name, shape: quantized.get(name, jnp.asarray(arrays[name])))
    other = build(
        CONFIG, lambda name, shape: jnp.asarray(dequantize(quantized[name]) if name in quantized else arrays[name])
    )
    ids = random_ids(CONFIG, 30)
    found = [measure(model, ids, bos_id=2, text_bytes=1).nll for model in (one, other)]
    assert found[0] == pytest.approx(found[1], rel=2e-3)  # the embedding's scale is rounded to bf16 in one of them


def test_an_empty_text_has_no_perplexity():
    with pytest.raises(ConfigError, match=r"the text must have at least one token, and it has none\."):
        measure(random_model(CONFIG), [], bos_id=2, text_bytes=0)
