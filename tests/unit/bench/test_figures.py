"""From rates to figures, with numbers that can be checked by hand."""

import pytest

from gemworks.bench.figures import add_ratios, figures, median_peaks, weight_bytes
from gemworks.bench.peaks import Peaks
from gemworks.bench.system import SystemSpec
from gemworks.bench.targets import verdicts
from gemworks.model.config import RELEASED

CONFIG = RELEASED["270m"]
PEAKS = Peaks(threads=2, read_gb_s=20.0, int8_gmac_s=500.0, fma_gmac_s=100.0)


def spec(name: str) -> SystemSpec:
    engine, kind = name.split(" ")
    return SystemSpec(engine, kind, "", 2)  # type: ignore[arg-type]


def test_decode_reads_weights_and_the_keys_and_values_of_half_the_answer():
    """225,446,400 bytes of weights, and 32 tokens of 18 layers x 2 x 256 x 2 bytes."""
    found = figures("decode", [40.0, 20.0, 30.0], CONFIG, spec("ours int4-b32+int8"), PEAKS)
    assert found["median"] == 30.0
    assert found["values"] == [40.0, 20.0, 30.0]
    assert found["gb_s"] == pytest.approx(30 * (225_446_400 + 32 * 18 * 1024) / 1e9)
    assert found["peak_share"] == pytest.approx(found["gb_s"] / 20)


def test_texts_decoded_together_read_the_weights_once():
    """80 tokens/s of 8 texts are 10 steps/s; each text has 144 tokens of context on average."""
    found = figures("batch", [80.0], CONFIG, spec("llama.cpp q4_0"), PEAKS)
    assert found["gb_s"] == pytest.approx(10 * (234_883_584 + 8 * 144 * 18 * 1024) / 1e9)


def test_prefill_is_measured_against_the_instructions_it_runs_on():
    """Matrices, attention (512 queries see 512 x 513 / 2 keys, 4 heads of 256, twice) and one row of logits."""
    macs = 100_270_080 + (18 * 512 * 513 // 2 * 2048 + 167_772_160) / 512
    int8 = figures("prefill", [100.0], CONFIG, spec("ours int4-b32"), PEAKS)
    bf16 = figures("prefill", [100.0], CONFIG, spec("xla bf16"), PEAKS)
    assert int8["gmac_s"] == pytest.approx(100 * macs / 1e9)
    assert int8["peak_share"] == pytest.approx(int8["gmac_s"] / 500)
    assert bf16["gmac_s"] == int8["gmac_s"]
    assert bf16["peak_share"] is None


def test_the_matrices_alone_are_counted_alone():
    found = figures("matmul", [1000.0], CONFIG, spec("ours int4-b32+int8"), PEAKS)
    assert found["gmac_s"] == pytest.approx(100.27, rel=1e-4)


def test_without_a_peak_there_is_no_share():
    found = figures("decode", [40.0], CONFIG, spec("ours int4-b32+int8"), Peaks(threads=2, why_missing="no compiler"))
    assert found["peak_share"] is None
    assert found["gb_s"] > 9


def test_a_rival_is_compared_with_ours_of_the_same_formats():
    medians = {"ours int4-b32+int8": 30.0, "ours int8-b32": 18.0, "llama.cpp q4_0": 15.0, "llama.cpp q8_0": 12.0}
    row = {name: {"median": value} for name, value in (medians | {"llama.cpp q4_0-pure": 1.0}).items()}
    add_ratios(row)
    ratios = {name: found["ours_over_it"] for name, found in row.items() if "ours_over_it" in found}
    assert ratios == {"llama.cpp q4_0": 2.0, "llama.cpp q8_0": 1.5}


def test_seconds_and_bytes_have_no_ceiling():
    assert figures("start", [1.0, 3.0, 2.0], CONFIG, spec("ours int4-b32+int8"), PEAKS) == {
        "median": 2.0,
        "values": [1.0, 3.0, 2.0],
    }


def test_peaks_are_medians_of_the_whole_run():
    seen = [Peaks(threads=2, read_gb_s=gb_s, int8_gmac_s=400.0, int8_name="x") for gb_s in (10.0, 30.0, 20.0)]
    assert median_peaks(seen) == Peaks(threads=2, read_gb_s=20.0, int8_gmac_s=400.0, int8_name="x")


def test_peaks_that_were_not_measured_keep_their_reason():
    seen = [Peaks(threads=2, why_missing="no compiler")] * 2
    assert median_peaks(seen) == seen[0]


@pytest.mark.parametrize(
    ("name", "count"),
    [("ours int4-b32+int8", 225_446_400), ("llama.cpp q4_0", 234_883_584), ("xla bf16", 536_308_224)],
)
def test_each_kind_of_system_has_its_bytes(name, count):
    assert weight_bytes(CONFIG, spec(name)) == count


def rows(**medians):
    """rows(decode={"ours int4-b32+int8": 4.0}) -> the report's rows."""
    return {row: {name: {"median": value} for name, value in by.items()} for row, by in medians.items()}


def by_text(model, table):
    return {verdict.text: verdict for verdict in verdicts(model, table)}


def test_a_target_over_a_rival_is_a_ratio():
    table = rows(decode={"ours int4-b32+int8": 30.0, "llama.cpp q4_0": 10.0})
    verdict = by_text("270m", table)["decode, ours int4-b32+int8, over llama.cpp q4_0"]
    assert (verdict.value, verdict.bound, verdict.is_met) == (3.0, 2.0, True)


def test_a_target_over_our_own_row_is_a_ratio_too():
    table = rows(**{"decode": {"ours int4-b32+int8": 20.0}, "decode-8k": {"ours int4-b32+int8": 17.0}})
    verdict = by_text("1b", table)["decode-8k, ours int4-b32+int8, over decode"]
    assert (verdict.value, verdict.is_met) == (0.85, False)


def test_a_target_may_be_an_upper_bound():
    late = by_text("270m", rows(start={"ours int4-b32+int8": 1.6}))["start, ours int4-b32+int8"]
    soon = by_text("1b", rows(start={"ours int4-b32+int8": 1.6}))["start, ours int4-b32+int8"]
    assert (late.is_met, soon.is_met) == (False, True)


def test_what_was_not_measured_is_neither_met_nor_missed():
    found = verdicts("270m", rows(decode={"ours int4-b32+int8": 30.0}))
    assert {verdict.is_met for verdict in found} == {None}


def test_every_target_of_the_table_is_there():
    assert {model: len(verdicts(model, {})) for model in ("270m", "1b", "4b", "12b")} == {
        "270m": 11,
        "1b": 14,
        "4b": 10,
        "12b": 0,
    }
