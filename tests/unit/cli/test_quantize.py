"""gemworks quantize: the plan, the files, the report, and what is refused before any work."""

import json
import random

import numpy as np
import pytest
from text_model import save_text_model

from gemworks.quant.rtn import quantize
from gemworks.weights import hub
from gemworks.weights.checkpoint import open_checkpoint
from recipes.tiny_standin import stories


def stories_of(seed: str, number: int) -> str:
    """Texts of the grammar that the embedded model was trained on: it predicts them, so that a change shows."""
    rng = random.Random(seed)
    return "\n\n".join(stories.plain_text(rng) for _ in range(number))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(stories_of("held", 30), encoding="utf-8")
    return path


@pytest.fixture
def calibration(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text(stories_of("calibration", 100), encoding="utf-8")
    return path


def test_the_plan_is_printed_and_nothing_is_done(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command("quantize", "tiny", "--plan", "--set", "layers.*.attn.v=int8-b32")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["TENSORS", "FORMAT", "NUMBER", "WEIGHTS", "SIZE"],
        ["layers.*.attn.v", "int8-b32", "6", "12,288", "13", "kB"],
        ["embed.weight", "int8", "1", "49,152", "52", "kB"],
        ["layers.*", "int4-b32", "36", "282,624", "159", "kB"],
        ["*.scale", "as", "stored", "37", "1,984", "4", "kB"],
        ["total", "80", "346,048", "228", "kB"],
    ]
    assert list(tmp_path.iterdir()) == []
    facts = json.loads(run_command("quantize", "tiny", "--plan", "--json")[1])
    assert facts["weights_bytes"] == 49_152 + 4 * 768 + 294_912 * 18 // 32 + 2 * 1984
    assert facts["bits_per_weight"] == pytest.approx(8 * facts["weights_bytes"] / 346_048)


def test_a_directory_and_its_perplexity(run_command, tmp_path, text):
    code, out, err = run_command("quantize", "tiny", "-o", str(tmp_path / "small"), "--text", str(text))
    assert (code, err) == (0, "")
    assert f"Wrote {tmp_path / 'small'} (" in out and "5.13 bits a weight." in out
    rows = [line.rsplit(maxsplit=2) for line in out.splitlines() if line.startswith(("BF16 (source)", "rtn"))]
    (_, before, bits), (_, after, _) = rows
    assert 1 < float(before) != float(after) < 1.5 * float(before) and 0 < float(bits) < 8
    with open_checkpoint(tmp_path / "small") as made, open_checkpoint(hub.TINY) as tiny:
        for name in ("embed.weight", "layers.3.ffw.down.weight"):
            found = made.read_quantized(name)
            wanted = quantize(tiny.read(name), "int8" if name == "embed.weight" else "int4-b32")
            assert found.codes.tobytes() == wanted.codes.tobytes()
    assert (tmp_path / "small" / "tokenizer.json").read_bytes() == (hub.TINY / "tokenizer.json").read_bytes()


def test_calibration_gives_other_codes_and_three_figures(run_command, tmp_path, text, calibration):
    arguments = ("--method", "gptq", "--calibration", str(calibration), "--text", str(text), "--json")
    source = str(save_text_model(tmp_path / "source"))
    code, out, err = run_command("quantize", source, "-o", str(tmp_path / "m.gguf"), *arguments)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["path"], facts["method"]) == (str(tmp_path / "m.gguf"), "gptq")
    assert facts["size_bytes"] == (tmp_path / "m.gguf").stat().st_size
    before, rtn, gptq = facts["perplexity"]
    assert (before["weights"], rtn["weights"], gptq["weights"]) == ("BF16 (source)", "rtn", "gptq")
    assert before["perplexity"] < gptq["perplexity"] < rtn["perplexity"]
    with open_checkpoint(tmp_path / "m.gguf") as made, open_checkpoint(hub.TINY) as tiny:
        assert {made.quantized_format(name) for name in made.entries} == {None, "int4-b32", "int8-b32"}
        name = "layers.3.ffw.down.weight"
        assert np.any(made.read_quantized(name).codes != quantize(tiny.read(name), "int4-b32").codes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--out must say where the model goes: a directory, or a name ending in .gguf."),
        (("-o", "x", "--method", "awq"), '--method must be one of rtn, gptq, got "awq".'),
        (("-o", "x", "--method", "gptq"), "--method gptq needs --calibration FILE: "),
        (("-o", "x", "--calibration", "f"), "--calibration is for --method gptq."),
        (
            ("-o", "x", "--format", "q4_0"),
            '--format must be one of int4-b32, int4, int8-b32, int8, sfp8, bf16, got "q4',
        ),
        (
            ("-o", "x.gguf", "--format", "int4"),
            "x.gguf: a GGUF file holds int4-b32, int8-b32, bf16, and the plan asks ",
        ),
        (("-o", "x", "--set", "*.w=int8"), '"*.w" must match the name of a matrix, and it matches none.'),
        (("-o", "x", "--text", "none.txt"), "none.txt cannot be read: No such file or directory."),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(run_command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command("quantize", "tiny", *arguments)
    assert (code, out) == (2, "") and err.startswith(f"Error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_texts_must_be_text(run_command, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    code, _, err = run_command("quantize", "tiny", "-o", str(tmp_path / "o"), "--text", str(tmp_path / "latin.txt"))
    assert code == 2 and "latin.txt must be UTF-8 text, and byte 3 is not." in err
    (tmp_path / "short.txt").write_text("Hello!")
    code, _, err = run_command(
        "quantize", "tiny", "-o", str(tmp_path / "o"), "--method", "gptq", "--calibration", str(tmp_path / "short.txt")
    )
    assert code == 2 and "the calibration text must have at least 32 tokens, got " in err
