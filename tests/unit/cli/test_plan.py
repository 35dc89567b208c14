"""The plan's numbers against arithmetic by hand over the sizes in the report, not against the code that makes them."""

import json

import pytest

from gemworks import machine
from gemworks.cli import plan
from gemworks.llm import DEFAULT_CONTEXT

# Parameters of the text models and of the vision tower with its projector, spec 3.4.
TEXT = {"270m": 268_098_176, "1b": 999_885_952, "4b": 3_880_263_168, "12b": 11_766_034_176, "27b": 27_009_346_304}
TOWER = 416_866_032
# name: kv heads, head width, local and global layers, window, limit
SHAPES = {
    "270m": (1, 256, 15, 3, 512, 32_768),
    "1b": (1, 256, 22, 4, 512, 32_768),
    "4b": (4, 256, 29, 5, 1024, 131_072),
    "12b": (8, 256, 40, 8, 1024, 131_072),
    "27b": (16, 128, 52, 10, 1024, 131_072),
}


def facts(run_command, *arguments):
    code, out, err = run_command("plan", *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("context", [100, 1024, 32_768])
def test_weights_and_cache_in_bf16(run_command, size, context):
    heads, width, local, global_, window, _ = SHAPES[size]
    found = facts(run_command, f"gemma3:{size}", "--context", context)
    one = 2 * heads * width * 2  # keys and values of one position in one layer, 2 bytes an element
    assert found["weights_bytes"] == 2 * TEXT[size]
    assert found["kv_full_bytes"] == one * context * (local + global_)
    assert found["kv_bytes"] == one * (context * global_ + min(context, window) * local)
    assert found["total_bytes"] == found["weights_bytes"] + found["kv_bytes"]
    assert found["total_full_kv_bytes"] == found["weights_bytes"] + found["kv_full_bytes"]
    assert found["layers"] == {"local": local, "global": global_, "window": window}


def test_27b_at_128k_is_ten_gibibytes_and_416_mebibytes_not_62(run_command):
    found = facts(run_command, "gemma3:27b", "--context", 131_072)
    assert found["kv_bytes"] == 10 * 2**30 + 416 * 2**20
    assert found["kv_full_bytes"] == 62 * 2**30


def test_the_report_s_weights_stand_beside_ours(run_command):
    """The report's bf16 row is the text model to its rounding; its others include a vision tower, so lie between."""
    for size in ("1b", "4b", "12b", "27b"):
        formats = facts(run_command, f"gemma3:{size}")["formats"]
        report = {name: row["report_weights_gb"] for name, row in formats.items()}
        assert report == {**plan.REPORT_WEIGHTS_GB[size], "int8": None, "int8-b32": None}
        assert formats["bf16"]["weights_bytes"] / 1e9 == pytest.approx(report["bf16"], rel=0.04)
        tower = 0 if size == "1b" else 2 * TOWER / 1e9
        for name in ("int4", "int4-b32", "sfp8"):
            ours = formats[name]["weights_bytes"] / 1e9
            assert ours - 0.06 <= report[name] <= ours + tower + 0.15, (size, name)


def test_the_report_s_row_with_32k_of_cache(run_command):
    """bf16 + 32K: 2.9, 12.7, 38.9, 72.7 GB, every layer counted whole; it is 2 GB above arithmetic from 12B on."""
    for size, report in {"1b": 2.9, "4b": 12.7, "12b": 38.9, "27b": 72.7}.items():
        found = facts(run_command, f"gemma3:{size}", "--context", 32_768)
        heads, width, local, global_, _, _ = SHAPES[size]
        by_hand = 2 * TEXT[size] + 2 * heads * width * 2 * 32_768 * (local + global_)
        assert found["total_full_kv_bytes"] == by_hand
        assert by_hand / 1e9 == pytest.approx(report, rel=0.07)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("sfp8", 8), ("int4", 4), ("int4-b32", 4.5)])
def test_quantized_formats(run_command, name, bits):
    """270M: bits a weight of every matrix; norms in bf16; int4 and int8 carry one fp32 scale a row."""
    found = facts(run_command, "gemma3:270m", "--format", name)
    norms = 18 * (4 * 640 + 2 * 256) + 640
    rows = 262_144 + 18 * (1024 + 256 + 256 + 640 + 2048 + 2048 + 640)
    scales = 4 * rows if name in ("int4", "int8") else 0
    assert found["weights_bytes"] == (TEXT["270m"] - norms) * bits // 8 + 2 * norms + scales
    assert found["format"] == name


def test_the_default_context_is_what_llm_would_take(run_command):
    assert (
        facts(run_command, "gemma3:27b")["context"] == facts(run_command, "gemma3:270m")["context"] == DEFAULT_CONTEXT
    )


@pytest.mark.parametrize(
    "name", ["gemma3:4b", "gemma3", "gemma-3-4b-it", "google/gemma-3-4b-pt", "4b", "gemma3:4b-it-qat"]
)
def test_a_released_name_needs_no_files(run_command, name):
    assert facts(run_command, name)["size"] == "4b"


@pytest.mark.parametrize(("available", "fits"), [(2_200_000_000, True), (2_100_000_000, False), (0, None)])
def test_whether_it_fits_is_measured_against_free_memory(run_command, monkeypatch, available, fits):
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=64_000_000_000, available=available))
    assert facts(run_command, "gemma3:1b", "--context", 32_768)["fits"] is fits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemma3:1b", "--context", "32769"], "--context must be between 1 and 32,768 for gemma3:1b, got 32,769."),
        (["gemma3:1b", "--context", "0"], "--context must be between 1 and 32,768 for gemma3:1b, got 0."),
        (
            ["gemma3:1b", "--format", "q4"],
            '--format must be one of bf16, int4, int4-b32, sfp8, int8, int8-b32, got "q4".',
        ),
        (["gemma3:1b", "--kv", "int4"], '--kv must be one of bfloat16, int8, float32, got "int4".'),
        (
            ["gemma3:1b", "--cache", "100"],
            "--cache is a part of an engine's memory: say for how many texts with --sequences.",
        ),
        (["gemma5:1b"], 'no model named "gemma5:1b". Did you mean "gemma3:1b"?'),
    ],
)
def test_what_cannot_be_planned(run_command, arguments, message):
    code, out, err = run_command("plan", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {message}\n")


def test_the_table_shows_windowed_beside_full(run_command, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=64_000_000_000, available=60_000_000_000))
    code, out, _ = run_command("plan", "gemma3:27b", "--context", "131072")
    assert code == 0
    assert "KV cache       11.2 GB as Gemworks keeps it: local layers keep their window\n" in out
    assert "               66.6 GB as the report counts: every layer keeps everything\n" in out
    assert "bf16       54.0 GB       54.0 GB   65.2 GB       120.6 GB   no\n" in out
    assert "int4       13.5 GB       14.1 GB   24.7 GB        80.1 GB   yes\n" in out


@pytest.mark.parametrize(("kv", "element"), [("bfloat16", 2), ("int8", 1), ("float32", 4)])
def test_one_text_s_cache_in_another_type(run_command, kv, element):
    found = facts(run_command, "gemma3:1b", "--context", 1024, "--kv", kv)
    scale = 4 if kv == "int8" else 0
    assert found["kv"] == kv
    assert found["kv_bytes"] == 2 * (256 * element + scale) * (4 * 1024 + 22 * 512)
    assert found["kv_full_bytes"] == 2 * (256 * element + scale) * 26 * 1024


@pytest.mark.parametrize(("kv", "one"), [("bfloat16", 1024), ("int8", 520)])
def test_an_engine_for_several_texts(run_command, monkeypatch, kv, one):
    """1B, 8 texts of 2,000 tokens and 500 of cache: 4 global layers in pages of 16 (125 a text), 22 rings of 512."""
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=64 * 10**9, available=1_700_000_000))
    arguments = ["gemma3:1b", "--context", 2000, "--sequences", 8, "--cache", 500, "--kv", kv, "--format", "int4-b32"]
    engine = facts(run_command, *arguments)["engine"]
    pages = 8 * 125 + 32 + 1
    windows = 9 * 33 + 1  # of 33 pages each, one more than texts, and the page that is never handed out
    assert engine["pages"] == pages
    assert engine["pages_bytes"] == pages * 16 * 4 * one
    assert engine["rings_bytes"] == 8 * 512 * 22 * one
    assert engine["local_pages_bytes"] == windows * 16 * 22 * one
    assert engine["kv_bytes"] == sum(engine[f"{part}_bytes"] for part in ("pages", "rings", "local_pages"))
    assert engine["cache_tokens"] == 512
    by_hand = 563_000_000 + engine["kv_bytes"] + engine["workspace_bytes"] + engine["process_bytes"]
    assert engine["total_bytes"] == pytest.approx(by_hand, rel=0.001)
    assert engine["fits"] is True
    formats = engine["formats"]
    assert formats["bf16"]["total_bytes"] - formats["int4-b32"]["total_bytes"] > 1_400_000_000
    assert formats["bf16"]["fits"] is False


def test_without_sequences_there_is_no_engine_in_the_plan(run_command):
    assert "engine" not in facts(run_command, "gemma3:1b")


def test_the_engine_s_table(run_command, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(total=64 * 10**9, available=1_000_000_000))
    code, out, _ = run_command("plan", "gemma3:1b", "--sequences", 16, "--kv", "int8", "--cache", 4096)
    assert code == 0
    assert "engine    16 texts at once, each up to 8,192 tokens, keys and values in int8\n" in out
    assert "pages     281 MB for global layers: room for all of them and 4,096 tokens of cache\n" in out
    assert "rings     94 MB for local layers: a window for each\n" in out
    assert "FORMAT     WEIGHTS   KV AND CACHE   WORKSPACE    TOTAL   FITS HERE\n" in out
    assert "bf16        2.0 GB         478 MB " in out
    assert "no\n" in out
