"""What is on this machine, and what counts as being there."""

import json

import pytest

from gemworks.errors import ConfigError, StorageError
from gemworks.weights import store
from gemworks.weights.modelfile import Modelfile


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMWORKS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def pulled():
    """A pulled model of 10 bytes."""
    folder = store.pulled_path("google/gemma-3-1b-it")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0123456789")
    (folder / "config.json").write_text("{}")
    return folder


def test_an_empty_home_holds_nothing_and_is_not_created(home):
    assert (store.list_pulled(), store.list_created()) == ([], [])
    assert not home.exists()


def test_pulled_models_are_listed_and_partial_ones_are_not(pulled):
    store.partial_path("google/gemma-3-4b-it").mkdir(parents=True)
    [model] = store.list_pulled()
    assert (model.name, model.kind, model.num_bytes, model.path) == ("google/gemma-3-1b-it", "pulled", 10, pulled)


def test_a_created_model_comes_back_as_it_was_saved():
    made = Modelfile(base="gemma3:1b", parameters={"seed": 3}, system="Ahoy.")
    store.save_created("me/pirate:v2", made)
    assert store.read_created("me/pirate:v2") == made
    [listed] = store.list_created()
    assert (listed.name, listed.kind, listed.source) == ("me/pirate:v2", "created", "gemma3:1b")


def test_latest_is_the_name_without_a_tag():
    path = store.save_created("pirate:latest", Modelfile(base="tiny"))
    assert path.name == "pirate.modelfile"
    assert store.read_created("pirate") == store.read_created("pirate:latest") == Modelfile(base="tiny")


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "a b", ".hidden", "a:b:c", "x\n"])
def test_names_that_could_leave_the_folder_are_refused(name, home):
    with pytest.raises(ConfigError, match="a model's name must be letters, digits"):
        store.save_created(name, Modelfile(base="tiny"))
    assert store.read_created(name) is None
    assert not home.exists()


def test_saving_again_replaces():
    store.save_created("pirate", Modelfile(base="tiny"))
    store.save_created("pirate", Modelfile(base="gemma3:1b"))
    assert [model.source for model in store.list_created()] == ["gemma3:1b"]


def test_a_file_damaged_by_hand_does_not_spoil_the_list():
    store.save_created("pirate", Modelfile(base="tiny")).write_text("FORM tiny")
    assert [model.source for model in store.list_created()] == ["(broken Modelfile)"]
    with pytest.raises(ConfigError, match=r"pirate\.modelfile:1: there is no instruction FORM"):
        store.read_created("pirate")


def test_a_file_that_is_not_text_is_named():
    store.save_created("pirate", Modelfile(base="tiny")).write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError, match=r"pirate\.modelfile cannot be read: it is not UTF-8 text"):
        store.read_created("pirate")


def test_removing_a_pulled_model_frees_its_bytes_and_its_partial_files(pulled):
    partial = store.partial_path("google/gemma-3-1b-it")
    partial.mkdir(parents=True)
    (partial / ".model.part").write_bytes(b"abc")
    assert store.remove_pulled("google/gemma-3-1b-it") == 10 + 2 + 3
    assert store.list_pulled() == []
    assert not pulled.parent.exists() and not partial.exists()


def test_removing_a_created_model_leaves_what_it_is_made_from(pulled):
    store.save_created("pirate", Modelfile(base="gemma3:1b"))
    store.remove_created("pirate")
    assert store.list_created() == [] and pulled.is_dir()


def test_a_missing_or_damaged_manifest_is_empty(pulled):
    assert store.read_manifest(pulled) == {}
    (pulled / store.MANIFEST).write_text("[1, 2")
    assert store.read_manifest(pulled) == {}
    (pulled / store.MANIFEST).write_text(json.dumps({"commit": "c"}))
    assert store.read_manifest(pulled) == {"commit": "c"}
