"""Blocks decoded and encoded by hand. The oracle tests compare with ggml's own package over random data."""

import numpy as np
import pytest

from gemworks.weights.gguf_blocks import CHUNK_ELEMENTS, LARGEST, TYPES, dequantize, quantize


def half(value: float) -> bytes:
    return np.array(value, "<f2").tobytes()


def decode(kind: str, block: bytes) -> np.ndarray:
    assert len(block) == TYPES[kind].block_bytes
    return dequantize(block, kind, (TYPES[kind].elements,))


def encode(kind: str, values: list[float]) -> bytes:
    return quantize(np.array([values], np.float32), kind).tobytes()


def test_q4_0_interleaves_the_halves():
    """Byte j holds weight j in its low nibble and weight j + 16 in its high nibble; w = d * (q - 8)."""
    block = half(0.5) + bytes([0x80, 0xF1]) + bytes([0x88]) * 14
    weights = decode("Q4_0", block)
    assert weights[0] == -4.0 and weights[16] == 0.0
    assert weights[1] == -3.5 and weights[17] == 3.5
    assert not weights[2:16].any() and not weights[18:].any()


def test_q4_1_adds_the_minimum():
    weights = decode("Q4_1", half(0.5) + half(-1.0) + bytes([0x2F]) * 16)
    assert weights.tolist() == [6.5] * 16 + [0.0] * 16


def test_q5_0_takes_its_fifth_bit_from_the_word():
    """Bit k of the little-endian word after d belongs to weight k."""
    word = (1 << 0 | 1 << 17).to_bytes(4, "little")
    weights = decode("Q5_0", half(2.0) + word + bytes(16))
    assert weights[0] == 0.0 and weights[17] == 0.0
    assert set(np.delete(weights, [0, 17]).tolist()) == {-32.0}


def test_q5_1_takes_its_fifth_bit_from_the_word():
    word = (1 << 31).to_bytes(4, "little")
    weights = decode("Q5_1", half(1.0) + half(3.0) + word + bytes(16))
    assert weights[31] == 19.0 and set(weights[:31].tolist()) == {3.0}


def test_q8_0_is_signed():
    quants = np.arange(-16, 16, dtype=np.int8)
    assert decode("Q8_0", half(0.25) + quants.tobytes()).tolist() == (quants * 0.25).tolist()


def k_scales(scales: list[int], minimums: list[int]) -> bytes:
    """The twelve bytes of Q4_K and Q5_K, packed bit by bit as the drawing in gguf_blocks has it."""
    packed = bytearray(12)
    for i in range(4):
        packed[i] = scales[i] | (scales[i + 4] >> 4) << 6
        packed[i + 4] = minimums[i] | (minimums[i + 4] >> 4) << 6
        packed[i + 8] = (scales[i + 4] & 15) | (minimums[i + 4] & 15) << 4
    return bytes(packed)


SCALES, MINIMUMS = [1, 2, 63, 4, 5, 16, 33, 62], [9, 63, 0, 1, 48, 2, 17, 31]


def test_q4_k_unpacks_scales_minimums_and_nibbles():
    """Sub-block s: low nibbles of its 32 bytes if s is even, high ones if odd; d * scale * q - m * minimum."""
    quarters = b"".join(bytes([(2 * i + 1) << 4 | 2 * i]) * 32 for i in range(4))
    weights = decode("Q4_K", half(0.5) + half(0.25) + k_scales(SCALES, MINIMUMS) + quarters).reshape(8, 32)
    for sub in range(8):
        assert set(weights[sub].tolist()) == {0.5 * SCALES[sub] * sub - 0.25 * MINIMUMS[sub]}, sub


def test_q5_k_takes_bit_s_of_byte_l_for_weight_l_of_sub_block_s():
    high = bytes([1 << (position % 8) for position in range(32)])
    block = half(1.0) + half(0.0) + k_scales(SCALES, MINIMUMS) + high + bytes([0x21]) * 128
    weights = decode("Q5_K", block).reshape(8, 32)
    for sub in range(8):
        low = 2 if sub % 2 else 1
        wanted = [SCALES[sub] * (low + 16 * (position % 8 == sub)) for position in range(32)]
        assert weights[sub].tolist() == wanted, sub


def test_q6_k_joins_four_low_and_two_high_bits():
    low = bytes([0x31]) * 32 + bytes([0x42]) * 32
    high = bytes([0b11_10_01_00]) * 32
    scales = np.array([1, -1, 2, -2, 3, -3, 4, -4] * 2, np.int8).tobytes()
    weights = decode("Q6_K", low * 2 + high * 2 + scales + half(0.5)).reshape(2, 4, 2, 16)
    for run, q in enumerate((1, 2 + 16, 3 + 32, 4 + 48)):
        factor = 0.5 * (run + 1) * (q - 32)
        assert set(weights[:, run, 0].ravel().tolist()) == {factor}
        assert set(weights[:, run, 1].ravel().tolist()) == {-factor}


def test_floats_keep_their_bits():
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0x0001], "<u2")
    assert decode("BF16", bits[:1].tobytes())[0] == 1.0
    widened = dequantize(bits.tobytes(), "BF16", (4,))
    assert (widened.view(np.uint32) == bits.astype(np.uint32) << 16).all()
    assert dequantize(half(0.1), "F16", (1,))[0] == np.float16(0.1)


def test_encoding_q4_0_by_hand():
    """The signed weight of largest magnitude, -4, becomes d = 0.5 and q = 0; half-way values round up."""
    values = [0.0] * 32
    values[3], values[19], values[5], values[6] = -4.0, 3.9, 0.25, -0.25
    block = encode("Q4_0", values)
    assert block[:2] == half(0.5)
    assert block[2 + 3] == 0xF0  # 3.9 / 0.5 + 8.5 = 16.3, kept to 15
    assert block[2 + 5] == 0x89 and block[2 + 6] == 0x88


def test_the_first_of_equal_magnitudes_gives_the_sign_of_q4_0():
    assert encode("Q4_0", [1.0, -1.0] + [0.0] * 30)[:2] == half(-0.125)
    assert encode("Q4_0", [-1.0, 1.0] + [0.0] * 30)[:2] == half(0.125)


def test_encoding_q8_0_rounds_halves_away_from_zero():
    block = encode("Q8_0", [127.0, 0.5, -0.5, 1.5, -2.5, 0.49999997] + [0.0] * 26)
    assert block[:2] == half(1.0)
    assert np.frombuffer(block[2:8], np.int8).tolist() == [127, 1, -1, 2, -3, 0]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_block_of_zeros_is_exact(kind):
    zeros = quantize(np.zeros((1, 32), np.float32), kind)
    assert not dequantize(zeros, kind, (1, 32)).any()


def test_encoding_bf16_rounds_to_even_and_keeps_nan():
    bits = np.array([0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x7F80_0001, 0xFF80_0000], np.uint32)
    stored = quantize(bits.view(np.float32)[None], "BF16").view("<u2")[0]
    assert [hex(value) for value in stored] == ["0x3f80", "0x3f82", "0x3f81", "0x7fc0", "0xff80"]


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_chunks_do_not_show(kind, monkeypatch):
    """Any chunk size gives the same weights."""
    blocks = np.random.default_rng(1).integers(0, 256, (7, TYPES[kind].block_bytes), dtype=np.uint8)
    shape = (7, TYPES[kind].elements)
    whole = dequantize(blocks, kind, shape)
    monkeypatch.setattr("gemworks.weights.gguf_blocks.CHUNK_ELEMENTS", 2 * TYPES[kind].elements)
    assert dequantize(blocks, kind, shape).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", sorted(LARGEST))
def test_the_largest_magnitude_survives(kind):
    values = np.full((1, 32), LARGEST[kind], np.float32)
    assert (dequantize(quantize(values, kind), kind, (1, 32)) == values).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_what_was_decoded_encodes_to_itself(kind):
    """Weights that came out of blocks go back into them: error 0, whatever the scale was rounded to."""
    values = np.random.default_rng(2).standard_normal((16, 256)).astype(np.float32)
    once = dequantize(quantize(values, kind), kind, values.shape)
    again = dequantize(quantize(once, kind), kind, values.shape)
    # Q8_0 divides by 127 and multiplies by the rounded quotient: the scale moves by at most one half-precision step.
    np.testing.assert_allclose(again, once, rtol=2e-3 if kind == "Q8_0" else 0)


def test_temporaries_stay_small():
    """The peak of a large tensor is its result and a few MiB."""
    import tracemalloc

    blocks = np.zeros((16 * CHUNK_ELEMENTS // 256, 210), np.uint8)
    tracemalloc.start()
    result = dequantize(blocks, "Q6_K", (len(blocks), 256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < result.nbytes + 8 * 4 * CHUNK_ELEMENTS
