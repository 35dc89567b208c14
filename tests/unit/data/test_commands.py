"""What the commands say when something is asked wrongly, and how a report is shown again."""

import json

import pytest

from gemworks.cli.main import run_command
from gemworks.data.filtering import FilterOptions, run_filter


@pytest.fixture
def source(write, documents):
    path = write("a.jsonl", documents)
    path.write_text(path.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filter", "none.jsonl", "-o", "out"], "Error: none.jsonl: no such file or directory."),
        (["filter", "a.jsonl", "-o", "out", "--rules", "gofer"], "rules must be some of language, gopher"),
        (["filter", "a.jsonl", "-o", "out", "--processes", "1", "--stop-on-broken"], "a.jsonl, line 41: not JSON"),
        (["filter", "a.jsonl", "-o", "out", "--personal", "hide"], "--personal must be one of mask, drop, keep"),
        (["pack", "a.jsonl", "-o", "out"], "Error: --out DIR and --tokenizer DIR must be given"),
        (["vocabulary", "a.jsonl", "-o", "out", "--size", "20"], "the size of a vocabulary must be at least"),
        (["mix", "none", "-o", "m.json"], "none/header.json: no such file; it should be the header of a packed store"),
        (["mix", "none", "-o", "m.json", "--weight", "de"], '--weight must be GROUP=NUMBER, as in de=0.3, got "de".'),
        (["inspect", "none.json"], "none.json: no such file; it should be a mixture"),
        (["report", "none"], "none/report.json: no such file; it should be the report"),
    ],
)
def test_what_a_user_gets_wrong_is_one_message(source, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(source.parent)
    assert run_command(["data", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_a_report_is_shown_again(source, tmp_path, capsys):
    report = run_filter([source], tmp_path / "out", FilterOptions(language_field=True, sets=("gopher",)))
    assert run_command(["data", "report", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "1 broken lines were skipped" in shown.err
    assert f"Kept {report['kept']} of 40 documents" in shown.out
    assert run_command(["data", "report", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 40


def test_inspect_names_the_documents_of_a_step(packed, capsys):
    assert run_command(["data", "inspect", str(packed), "--step", "3", "--batch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Step 3 of {packed}: 2 rows of 64 tokens, digest ")
    assert sum(line.startswith("row ") for line in lines) == 2
    assert all("documents.jsonl:" in line for line in lines if line.startswith("    "))
