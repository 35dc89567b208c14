"""The table of a JSON Schema suite: what is counted as right, narrow, wrong and refused."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("grammar_coverage", ROOT / "bench" / "grammar" / "coverage.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def group(schema, valid=(), invalid=()):
    tests = [{"description": "", "data": data, "valid": True} for data in valid]
    return {"description": "g", "schema": schema, "tests": tests + [{"data": d, "valid": False} for d in invalid]}


ORDERED = {"type": "object", "properties": {"a": {"type": "integer"}, "\u00e9": {"type": "null"}}}


def test_a_file_of_groups_is_a_row(coverage, tmp_path, capsys):
    (tmp_path / "optional").mkdir()
    one = [
        group({"type": "integer"}, [1, -2], ["a", 1.5]),
        group(ORDERED, [{"\u00e9": None, "a": 1}], [{"a": "x"}]),
        group({"not": {}}, [], [1]),  # nothing satisfies it
        group({"not": {"type": "null"}}, [1], [None]),
    ]
    (tmp_path / "type.json").write_text(json.dumps(one), encoding="utf-8")
    (tmp_path / "optional" / "x.json").write_text(json.dumps([group({"minimum": 3}, ["\ud800", 4], [2])]))
    summary = coverage.main(["--suite", str(tmp_path), "--wrong"])
    assert summary == {
        "groups": 5,
        "compiled": 3,
        "right": 2,
        "valid": 5,
        "accepted": 3,  # half of a surrogate pair is no text
        "invalid": 4,
        "rejected": 4,
        "groups_wrong": 0,
        "groups_narrow": 2,
    }
    said = capsys.readouterr().out
    assert json.loads(said.splitlines()[-1]) == summary
    [row] = [line for line in said.splitlines() if line.startswith("type ")]
    assert row.split() == ["type", "4", "2", "2/3", "3/3", "0.50", "0.55", "0.91", "0.00", "0.91"]
    assert '2  Unimplemented keys: ["not"]' in said and "wrong:" not in said


def test_a_folder_of_files_is_a_row_too(coverage, tmp_path, capsys):
    for n in range(6):
        folder = tmp_path / ("Easy" if n < 4 else "Hard")
        folder.mkdir(exist_ok=True)
        (folder / f"{n}.json").write_text(json.dumps(group({"const": n}, [n], [n + 1])))
    summary = coverage.main(["--suite", str(tmp_path), "--every", "2"])
    assert (summary["groups"], summary["right"]) == (3, 3)
    assert "LLGuidance   passing 78.8%" in capsys.readouterr().out


def test_an_invalid_instance_that_is_accepted_is_told(coverage, tmp_path, capsys):
    (tmp_path / "minimum.json").write_text(json.dumps([group({"minimum": 3}, [], [5])]))  # a suite that lies
    assert coverage.main(["--suite", str(tmp_path), "--wrong"])["groups_wrong"] == 1
    assert "wrong: g: None: 5" in capsys.readouterr().out
