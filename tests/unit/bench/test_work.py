"""Bytes and multiply-adds against figures worked out by hand from the published shapes."""

import pytest
from small_models import small_config

from gemworks.bench import work
from gemworks.model.config import RELEASED


def test_a_gguf_file_of_270m_has_the_bytes_llama_cpp_counts():
    """llama_model_size of the files: 100,270,080 weights in blocks, 167,772,160 in the table, 55,936 norm gains."""
    config = RELEASED["270m"]
    assert work.gguf_bytes(config, "q4_0") == 56_401_920 + 178_257_920 + 223_744 == 234_883_584
    assert work.gguf_bytes(config, "q4_0-pure") == 56_401_920 + 94_371_840 + 223_744
    assert work.gguf_bytes(config, "q8_0") == 106_536_960 + 178_257_920 + 223_744


def test_llama_cpps_own_choice_for_4b_has_six_bits_and_a_half_in_the_table():
    """6.5625 bits a weight against Q4_0's 4.5, 262,208 rows of 2,560."""
    config = RELEASED["4b"]
    more = work.gguf_bytes(config, "q4_0-q6_k") - work.gguf_bytes(config, "q4_0-pure")
    # What its quantizer printed for the random 4B: "quant size = 2247.78 MiB".
    assert work.gguf_bytes(config, "q4_0-q6_k") / 2**20 == pytest.approx(2247.78, abs=0.01)
    assert more == 262_208 * (2560 // 256 * 210 - 2560 // 32 * 18) == 173_057_280


def test_ours_counts_packed_bytes_with_row_scales_and_fp32_norms():
    """16,384 panels of 16 rows, each with one line of 64 bytes for its scales."""
    config = RELEASED["270m"]
    assert work.ours_bytes(config, "int4-b32", "int8") == 56_401_920 + (167_772_160 + 16_384 * 64) + 223_744
    assert work.ours_bytes(config, None, None) == 2 * 268_042_240 + 223_744


def test_openvino_counts_groups_of_128():
    assert work.openvino_bytes(RELEASED["270m"]) == 100_270_080 * 33 // 64 + 167_772_160 + 2 * 262_144 + 2 * 55_936


def test_multiply_adds_of_a_token():
    assert work.matmul_macs(RELEASED["270m"]) == 18 * (2 * 1024 * 640 + 2 * 256 * 640 + 3 * 2048 * 640)
    assert work.matmul_macs(RELEASED["1b"]) == pytest.approx(0.698e9, rel=1e-3)
    assert work.matmul_macs(RELEASED["4b"]) == pytest.approx(3.209e9, rel=1e-3)


def test_attention_counts_the_keys_each_query_sees():
    """Window 2: queries see 1, 2, 2 keys. Six of seven layers are local; 4 heads of 16; q.k and p.v."""
    config = small_config(window=2)
    assert work.attention_macs(config, 3) == 2 * 4 * 16 * (6 * 5 + 1 * 6)


def test_a_prompt_needs_one_row_of_logits():
    config = small_config()
    assert work.prefill_macs(config, 5) - 5 * work.matmul_macs(config) - work.attention_macs(config, 5) == 160 * 48


def test_decode_reads_a_window_of_keys_and_values_in_local_layers():
    """7 layers, 2 heads of 16, keys and values, 2 bytes: local ones keep 8 positions, the global one all 100."""
    assert work.decode_bytes(small_config(window=8), 1000, 100) == 1000 + 2 * 2 * 16 * 2 * (6 * 8 + 100)
