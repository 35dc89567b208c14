"""list and rm know what is packed of which model."""

import json

import numpy as np
import pytest

from gemworks.weights import hub, packed_store, store
from gemworks.weights.packed import PackedSource, write_packed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "TINY", tmp_path / "nothing")


@pytest.fixture
def pulled():
    folder = store.pulled_path("google/gemma-3-1b-it")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * 5000)
    return folder


def pack(source, plan="embed.weight=int8"):
    array = np.zeros(10, np.float32)
    path = packed_store.packed_path(source, plan)
    own = PackedSource(name="x", kind="float32", shape=(10,), size=40, produce=lambda: array)
    write_packed(path, [own], layout=1, source={"path": str(source.resolve())}, plan=plan)
    return path


def test_list_shows_what_is_packed_under_the_models_name(run_command, pulled, tmp_path):
    one, other = pack(pulled), pack(tmp_path / "elsewhere")
    code, out, _ = run_command("list")
    size = f"{one.stat().st_size / 1e6:.1f}"[:1]
    assert code == 0 and "PACKED" in out and "PLAN" in out
    [line] = [line for line in out.splitlines() if line.startswith("gemma3:1b") and "embed" in line]
    assert f"{size} MB" in line and "just now" in line
    assert str(tmp_path / "elsewhere") in out
    found = json.loads(run_command("list", "--json")[1])["packed"]
    assert {entry["path"] for entry in found} == {str(one), str(other)}
    assert {entry["source"] for entry in found} == {str(pulled), str(tmp_path / "elsewhere")}
    assert all(entry["plan"] == "embed.weight=int8" and entry["size_bytes"] > 2**20 for entry in found)


def test_list_shows_a_damaged_file_as_unusable(run_command, pulled):
    path = pack(pulled)
    path.write_bytes(b"something else")
    assert f"unusable: {path}" in run_command("list")[1]


def test_list_without_packed_files_has_no_such_table(run_command, pulled):
    assert "PACKED" not in run_command("list")[1]


def test_rm_of_a_model_takes_what_was_packed_of_it(run_command, pulled, tmp_path):
    own, other = pack(pulled), pack(tmp_path / "elsewhere")
    size = own.stat().st_size
    report = json.loads(run_command("rm", "gemma3:1b", "--json")[1])
    assert report == {"removed": ["gemma3:1b"], "freed_bytes": 5000 + size}
    assert not own.exists() and other.exists()


def test_rm_packed_leaves_the_model(run_command, pulled, tmp_path):
    own, second, other = pack(pulled), pack(pulled, "another"), pack(tmp_path / "elsewhere")
    assert run_command("rm", "--packed", "gemma3:1b")[:2] == (0, "Removed 2 packed files, 2 MB.\n")
    assert (own.exists(), second.exists(), other.exists(), pulled.exists()) == (False, False, True, True)
    assert run_command("rm", "--packed")[:2] == (0, "Removed 1 packed file, 1 MB.\n")
    assert run_command("rm", "--packed")[:2] == (0, "Nothing is packed.\n")


def test_rm_packed_of_an_unknown_model_is_refused(run_command):
    code, _, err = run_command("rm", "--packed", "gemma3:1bb")
    assert code == 2 and err.startswith("Error: ")


def test_rm_without_a_name_is_refused(run_command):
    assert run_command("rm") == (2, "", "Error: name the models to remove, as `gemworks list` shows them.\n")
