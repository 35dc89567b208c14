"""gemworks bench: what it refuses, what it prints."""

import json
import subprocess
import sys

import pytest
from small_models import small_config

from gemworks.bench import cpu, models, random_model, rivals, roofline

ROWS = {"decode": {"ours int4-b32+int8": {"median": 50.0, "values": [50.0], "gb_s": 11.0, "peak_share": 0.5}}}


@pytest.fixture
def report(monkeypatch):
    """Nothing is made or measured; every model gets the same report."""
    peaks = {"threads": 2, "why_missing": "no compiler", "read_gb_s": None, "int8_gmac_s": None}

    def run(plan, say):
        say(f"{plan.model}: decode")
        return {"model": plan.model, "peaks": peaks, "systems": {}, "answers": [], "rows": ROWS, "targets": []}

    monkeypatch.setattr(cpu, "run", run)
    monkeypatch.setattr(models, "make_missing", lambda size, wanted, *_: wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "1b,2b"], 'a size must be one of 270m, 1b, 4b, 12b, 27b, got "2b".'),
        (["--models", ","], '--models must name at least one size, as in 270m,1b, got ",".'),
        (["--rivals", "ollama"], '--rivals must be all, none or some of llama.cpp, openvino, got "ollama".'),
        (["--what", "dance"], "--what must be all or some of decode, prefill, batch, long, matmul, start, memory"),
        (["--openvino-python", "/no/python"], "--openvino-python must be a Python to run, and /no/python is not"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(run_command, tmp_path, arguments, message):
    code, out, err = run_command("bench", "cpu", "--dir", tmp_path / "models", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "models").exists()


def test_a_named_rival_that_is_not_installed_is_refused(run_command, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    code, _, err = run_command("bench", "cpu", "--rivals", "openvino")
    assert code == 2
    assert "openvino is not installed here" in err
    assert "--openvino-python" in err


def test_a_plot_without_matplotlib_is_refused_before_measuring(run_command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(models, "make_missing", lambda *_: pytest.fail("went on"))
    code, _, err = run_command(
        "bench", "cpu", "--rivals", "none", "--dir", tmp_path / "m", "--plot", tmp_path / "roofline.png"
    )
    assert code == 2
    assert 'pip install "gemworks[bench]"' in err


def test_it_ends_with_one_json_line(run_command, report, tmp_path):
    code, out, err = run_command("bench", "cpu", "--models", "270m,1b", "--rivals", "none", "--dir", tmp_path)
    *text, last = out.splitlines()
    assert code == 0
    assert text[0] == "270m, 2 threads"
    assert "270m: decode" in err
    data = json.loads(last)
    assert [one["model"] for one in data["models"]] == ["270m", "1b"]
    assert data["repeats"] == 5
    assert data["machine"]["usable_cores"] >= 1


def test_with_json_there_is_nothing_else(run_command, report, tmp_path):
    _, out, _ = run_command("bench", "cpu", "--models", "1b", "--rivals", "none", "--dir", tmp_path, "--json")
    assert json.loads(out)["models"][0]["rows"] == ROWS


def test_the_systems_asked_for_are_measured(run_command, report, monkeypatch, tmp_path):
    seen, measure = [], cpu.run
    monkeypatch.setattr(cpu, "run", lambda plan, say: seen.append(plan) or measure(plan, say))
    monkeypatch.setattr(rivals, "_has_llama_cpp", lambda: True)
    run_command(
        "bench", "cpu", "--models", "270m", "--rivals", "llama.cpp", "--what", "decode", "--repeats", "7",
        "--threads", "3", "--dir", tmp_path, "--no-twin",
    )  # fmt: skip
    [plan] = seen
    assert (plan.repeats, plan.threads, plan.whats) == (7, 3, ("decode",))
    assert [spec.engine for spec in plan.specs] == ["ours", "llama.cpp"] * 3
    assert {spec.threads for spec in plan.specs} == {3}


def test_make_random_makes_a_model_and_says_where(run_command, monkeypatch, tmp_path):
    monkeypatch.setattr(random_model, "RELEASED", {"270m": small_config()})
    code, out, _ = run_command("bench", "make-random", "270M", "-o", tmp_path / "model")
    assert (code, out) == (0, f"Made {tmp_path / 'model'}.\n")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    code, _, err = run_command("bench", "make-random", "270m", "-o", tmp_path / "model")
    assert code == 2
    assert "exists already" in err
    code, out, _ = run_command("bench", "make-random", "270m", "-o", tmp_path / "model", "--force", "--json")
    assert json.loads(out) == {"size": "270m", "paths": [str(tmp_path / "model")]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3b"], 'a size must be one of 270m, 1b, 4b, 12b, 27b, got "3b".'),
        (["1b", "--gguf", "q2_k"], '--gguf must be one of q4_0, q4_0-pure, q8_0, bf16, got "q2_k".'),
        (["1b", "--gguf", "q4_0"], "--gguf needs a tokenizer, which a GGUF file carries inside, and none was found."),
        (["1b", "--tokenizer", "."], "has neither"),
    ],
)
def test_what_cannot_be_made_is_refused_before_a_byte_is_written(run_command, tmp_path, arguments, message):
    code, _, err = run_command("bench", "make-random", *arguments, "-o", tmp_path / "model")
    assert code == 2
    assert message in err
    assert not (tmp_path / "model").exists()


def test_the_picture_has_a_panel_for_each_ceiling(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gemworks[bench])")
    peaks = {"read_gb_s": 20.0, "int8_gmac_s": 400.0}
    prefill = {"ours int4-b32+int8": {"median": 900.0, "values": [900.0], "gmac_s": 95.0, "peak_share": 0.3}}
    reports = [{"model": "270m", "peaks": peaks, "rows": ROWS | {"prefill": prefill}}]
    roofline.draw(reports, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert roofline._points(reports, "decode", "gb_s") == [("ours", "270m int4-b32+int8", 0.22, 50.0)]
    assert roofline._points(reports, "prefill", "gmac_s")[0][2] == pytest.approx(0.100, rel=0.01)
