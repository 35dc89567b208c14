"""Rounding to the nearest code: each format against its definition, and refusals by name."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from gemworks.errors import ConfigError
from gemworks.ops.weight import FORMATS, QuantWeight, code_shapes, quant_bytes
from gemworks.quant.formats import dequantize, pack_nibbles, sfp8_values, unpack_nibbles
from gemworks.quant.rtn import quantize, sfp8_codes
from gemworks.weights import gguf_blocks

# spec/training.md 2.10: what a number becomes as an 8-bit float.
GOLDEN_SFP8 = [
    (0.484375, 0.5),
    (0.296875, 0.3125),
    (0.265625, 0.25),
    (0.53125, 0.5),
    (1.0625, 1.0),
    (0.00732421875, 0.0078125),
    (0.0068359375, 0.0068359375),
    (1.49011611938e-7, 1.49011611938e-7),
    (1.1920929e-7, 1.4901161e-7),
    (8.9406967e-8, 0.0),
    (1.11758709e-7, 1.4901161e-7),
    (0.013841, 0.013671875),
    (1.875, 1.875),
    (0.0, 0.0),
]


def normal(F: int, D: int, seed: int = 0, spread: float = 0.03) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (F, D)).astype(np.float32)


def relative_error(weight: np.ndarray, format: str) -> float:
    weight = weight.astype(np.float32)
    return float(np.linalg.norm(dequantize(quantize(weight, format)) - weight) / np.linalg.norm(weight))


@pytest.mark.parametrize("format", FORMATS)
def test_shapes_and_dtypes_are_those_of_the_format(format):
    weight = quantize(normal(5, 96), format)
    assert ((weight.codes.shape, weight.codes.dtype), (weight.scales.shape, weight.scales.dtype)) == code_shapes(
        format, 5, 96
    )
    assert weight.nbytes == quant_bytes(format, 5, 96)
    assert dequantize(weight).dtype == np.float32 and dequantize(weight).shape == (5, 96)


# Normal weights. 4 bits: 0.1 for the best scale of an even grid of 16 (Max 1960), less where 32 share a scale; 8-bit
# integers: max / 127 / sqrt(12); sfp8: three bits of fraction, 0.0267 measured with gemma.cpp; bf16: eight bits.
@pytest.mark.parametrize(
    ("format", "least", "most"),
    [
        ("int4-b32", 0.07, 0.095),
        ("int4", 0.1, 0.115),
        ("int8-b32", 0.004, 0.006),
        ("int8", 0.006, 0.009),
        ("sfp8", 0.025, 0.028),
        ("bf16", 0.001, 0.002),
    ],
)
def test_the_error_of_normal_weights_is_what_the_grid_allows(format, least, most):
    assert least < relative_error(normal(64, 1152), format) < most


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_every_float_dtype_gives_what_its_fp32_values_give(format, dtype):
    weight = normal(3, 64).astype(dtype)
    one, other = quantize(weight, format), quantize(weight.astype(np.float32), format)
    assert one.codes.tobytes() == other.codes.tobytes() and one.scales.tobytes() == other.scales.tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_chunks_of_rows_change_nothing(format):
    """1,000 rows of 1,024 are four chunks: each row must come out as it does alone."""
    weight = normal(1000, 1024)
    if format == "sfp8":
        weight[3, 3] = 5.0  # the one scale of the tensor is that of its largest weight
    whole = dequantize(quantize(weight, format))
    for row in (0, 3, 255, 256, 511, 999):
        alone = weight[row : row + 1]
        if format == "sfp8" and row != 3:
            alone = np.concatenate([alone, weight[3:4]])
        np.testing.assert_array_equal(whole[row], dequantize(quantize(alone, format))[0])


@pytest.mark.parametrize(("format", "kind"), [("int4-b32", "Q4_0"), ("int8-b32", "Q8_0")])
def test_block_formats_are_ggufs_blocks(format, kind):
    """The bytes of a GGUF file hold the same codes and scales."""
    weight = normal(7, 128)
    weight[2] = 0
    weight[3, 32:64] = np.float32(1e-41)  # 1 / scale overflows
    found = quantize(weight, format)
    blocks = gguf_blocks.quantize(weight, kind).reshape(7, 4, -1)
    assert found.scales.tobytes() == np.ascontiguousarray(blocks[:, :, :2]).tobytes()
    assert found.codes.tobytes() == np.ascontiguousarray(blocks[:, :, 2:]).tobytes()
    np.testing.assert_array_equal(dequantize(found), gguf_blocks.dequantize(blocks, kind, (7, 128)))


@pytest.mark.parametrize("format", ["int4-b32", "int8-b32", "sfp8", "bf16"])
def test_what_is_on_the_grid_stays(format):
    once = dequantize(quantize(normal(16, 256), format))
    again = dequantize(quantize(once, format))
    np.testing.assert_array_equal(once, again)


def test_int8_uses_the_whole_range_of_each_row():
    weight = normal(8, 64) * np.arange(8, dtype=np.float32)[:, None]  # the first row is zeros
    found = quantize(weight, "int8")
    assert np.abs(found.codes).max(axis=1).tolist() == [0] + [127] * 7
    np.testing.assert_allclose(found.scales[1:], np.abs(weight[1:]).max(axis=1) / 127, rtol=1e-6)
    assert not dequantize(found)[0].any()


def test_int4_finds_a_better_scale_than_the_largest_weight_gives():
    weight = normal(4, 1152)
    weight[1, 7] = 1.0  # an outlier of 33 standard deviations: worth clipping
    weight[2] = 0
    found = quantize(weight, "int4")
    plain = np.abs(weight).max(axis=1, keepdims=True) / 7
    plain[plain == 0] = 1
    plain_error = ((np.rint(weight / plain) * plain - weight) ** 2).sum(axis=1)
    error = ((dequantize(found) - weight) ** 2).sum(axis=1)
    assert (error[[0, 1, 3]] < 0.9 * plain_error[[0, 1, 3]]).all() and error[2] == 0


@pytest.mark.parametrize(("value", "wanted"), GOLDEN_SFP8)
@pytest.mark.parametrize("sign", [1, -1])
def test_sfp8_golden_pairs(value, wanted, sign):
    found = sfp8_values()[sfp8_codes(np.array([sign * value], np.float32))]
    np.testing.assert_allclose(found, [sign * wanted], rtol=1e-7)


def test_sfp8_codes_decode_to_themselves_and_to_bf16_bits():
    """All 255 values; the bit rule of gemma.cpp's decoder (spec 2.10) gives the same bf16."""
    codes = np.array([c for c in range(256) if c != 0x80], np.uint8)
    values = sfp8_values()[codes]
    assert len(set(values.tolist())) == 255 and np.abs(values).max() == 1.875
    np.testing.assert_array_equal(sfp8_codes(values), codes)
    c = (codes & 127).astype(np.uint16)
    high = np.where(c < 64, 0x34 + (c >> 3), 0x38 + (c >> 4)) | (codes & 128)
    low = np.where(c < 64, c << 5, c << 4) & 0xFF
    bits = np.where(c == 0, 0, (high << 8) | low).astype(np.uint16)
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16).astype(np.float32), values)


def test_sfp8_takes_the_nearest_value():
    values = np.concatenate([normal(1, 20_000, spread=s)[0] for s in (0.02, 0.3)]).clip(-1.875, 1.875)
    grid = np.sort(sfp8_values()[np.arange(256) != 0x80])
    above = np.searchsorted(grid, values).clip(1, len(grid) - 1)
    nearest = np.minimum(np.abs(values - grid[above - 1]), np.abs(grid[above] - values))
    np.testing.assert_array_equal(np.abs(values - sfp8_values()[sfp8_codes(values)]), nearest)


def test_sfp8_is_scaled_only_where_it_must_be():
    weight = normal(4, 32)
    assert quantize(weight, "sfp8").scales.tolist() == [1.0]
    weight[1, 1] = -3.75
    found = quantize(weight, "sfp8")
    assert found.scales.tolist() == [2.0] and dequantize(found)[1, 1] == -3.75


def test_nibbles_lie_as_in_q4_0():
    levels = np.arange(64, dtype=np.uint8)[None] % 16
    codes = pack_nibbles(levels)
    assert codes[0, 0] == levels[0, 0] | levels[0, 16] << 4 and codes[0, 31] == levels[0, 47] | levels[0, 63] << 4
    np.testing.assert_array_equal(unpack_nibbles(codes), levels)


def test_numpy_and_xla_mean_the_same():
    from gemworks.ops.xla.quant import dequantize as dequantize_xla

    for format in FORMATS:
        weight = quantize(normal(6, 96, spread=1.0), format)
        np.testing.assert_array_equal(np.asarray(dequantize_xla(weight)), dequantize(weight), err_msg=format)


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_place(format, value):
    weight = normal(600, 1024)
    weight[511, 17] = value
    with pytest.raises(ConfigError, match=rf"^layers\.0\.attn\.q must hold finite .* \[511, 17\] is {value}\.\n"):
        quantize(weight, format, name="layers.0.attn.q")


@pytest.mark.parametrize(("format", "limit"), [("int4-b32", "524,032"), ("int8-b32", "8,319,008")])
def test_weights_too_large_for_fp16_scales_are_refused(format, limit):
    with pytest.raises(ConfigError, match=rf"x must be at most {limit} to be stored as {format}, and it holds 1e\+07"):
        quantize(np.full((2, 32), 1e7, np.float32), format, name="x")


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "bf16"])
def test_a_width_that_is_not_whole_blocks_is_refused(format):
    with pytest.raises(
        ConfigError, match=rf"x must be a matrix with a multiple of 32 columns .* {format}, got \[3, 40"
    ):
        quantize(normal(3, 40), format, name="x")
    assert dequantize(quantize(normal(3, 40), "bf16")).shape == (3, 40)


def test_an_unknown_format_is_refused():
    with pytest.raises(ConfigError, match=r'one of int4-b32, int4, int8-b32, int8, sfp8, bf16, got "q4_k"\.'):
        quantize(normal(2, 32), "q4_k")


@pytest.mark.parametrize("format", FORMATS)
def test_temporaries_are_a_few_mib(format):
    """A table of 262,144 rows must not need a second one: this one is 32 MiB in fp32, and its chunks are 1 MiB."""
    weight = normal(8192, 1024).astype(ml_dtypes.bfloat16)
    quantize(weight[:1024], format)
    tracemalloc.start()
    found = quantize(weight, format)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, QuantWeight) and peak < found.nbytes + (12 << 20)
