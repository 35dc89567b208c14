"""The text of a report."""

from gemworks.bench.report import text

REPORT = {
    "model": "1b",
    "peaks": {
        "threads": 2,
        "read_gb_s": 19.5,
        "int8_gmac_s": 468.0,
        "int8_name": "avx512_vnni",
        "fma_gmac_s": 117.4,
        "fma_name": "avx512f",
        "why_missing": None,
    },
    "systems": {},
    "answers": [
        {
            "ours": "ours int4-b32",
            "rival": "llama.cpp q4_0-pure",
            "relative_distance": 0.031,
            "same_tokens": 3,
            "prompts": 3,
            "agree": True,
        }
    ],
    "rows": {
        "memory": {"ours int4-b32+int8": {"median": 312e6, "values": [310e6, 314e6]}},
        "decode": {
            "ours int4-b32+int8": {"median": 27.31, "values": [26.0, 27.31, 28.0], "gb_s": 19.0, "peak_share": 0.974},
            "xla bf16": {"median": 5.0, "values": [5.0], "gb_s": 10.0, "peak_share": None, "ours_over_it": 5.462},
        },
    },
    "targets": [
        {"text": "decode, share", "bound": 0.88, "value": 0.974, "is_upper": False, "is_met": True},
        {"text": "memory, ours", "bound": 350e6, "value": 400e6, "is_upper": True, "is_met": False},
        {"text": "start, ours", "bound": 2.0, "value": None, "is_upper": True, "is_met": None},
    ],
}


def test_a_report_reads_as_tables_beside_the_peaks():
    assert text(REPORT) == (
        """\
1b, 2 threads
  peaks: 19.5 GB/s read, 468 GMAC/s int8 (avx512_vnni), 117 GMAC/s fp32 (avx512f)
  answers agree: ours int4-b32 and llama.cpp q4_0-pure, scores 3.1% apart, 3 of 3 next tokens alike

  decode, 64 tokens from an empty context, tokens/s
    ours int4-b32+int8      27.3  (26.0 to 28.0)  19.0 GB/s, 97% of the peak
    xla bf16                5.00  (5.00 to 5.00)  10.0 GB/s  ours 5.46x

  a fresh process, 512 in, 32 out, MB over weights and KV
    ours int4-b32+int8       312  (310 to 314)

  targets
    met           decode, share: 0.97 (wanted >= 0.88)
    MISSED        memory, ours: 400 (wanted <= 350)
    not measured  start, ours: - (wanted <= 2.00)"""
    )


def test_missing_peaks_and_other_answers_are_said_loudly():
    peaks = REPORT["peaks"] | {"why_missing": "no compiler was found"}
    answers = [REPORT["answers"][0] | {"agree": False}]
    shown = text(REPORT | {"peaks": peaks, "answers": answers, "rows": {}, "targets": []})
    assert "peaks not measured: no compiler was found" in shown
    assert "answers DISAGREE: ours int4-b32" in shown
    assert "targets" not in shown


def test_why_answers_were_not_compared_is_said():
    answers = [{"ours": "ours int4-b32", "rival": "llama.cpp q", "agree": None, "why_not_compared": "other weights"}]
    shown = text(REPORT | {"answers": answers, "rows": {}, "targets": []})
    assert "  answers not compared: ours int4-b32 and llama.cpp q, other weights\n" in shown + "\n"
