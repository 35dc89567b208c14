"""Ollama's calls about models: tags, show, ps, create, copy, delete, blobs; over files in a home of the test's own."""

import hashlib
import json
import shutil
import types
from datetime import datetime
from pathlib import Path

import pytest
from served_app import ServedApp

from gemworks.errors import GemworksWarning
from gemworks.server.ollama import facts, uploads
from gemworks.server.ollama.names import rfc3339, tagged
from gemworks.tokenizer.chat import is_gemma_template
from gemworks.weights import store
from gemworks.weights.hub import TINY
from gemworks.weights.modelfile import parse_modelfile


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEMWORKS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def app(tmp_path, home):
    served = ServedApp(tmp_path)
    yield served
    served.close()


def pull_by_hand(repository: str, source: Path = TINY) -> Path:
    """What a pull leaves: the files under the repository's name."""
    folder = store.pulled_path(repository)
    shutil.copytree(source, folder)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"repository": repository, "files": files}))
    return folder


def names(app) -> list[str]:
    return [model["name"] for model in app.ask("GET", "/api/tags").json()["models"]]


def test_tags_list_every_model_by_ollamas_names(app):
    assert names(app) == ["tiny:latest"]
    pull_by_hand("google/gemma-3-1b-it")
    pull_by_hand("me/other")
    app.post("/api/copy", source="tiny", destination="pirate")
    assert names(app) == ["tiny:latest", "gemma3:1b", "me/other:latest", "pirate:latest"]
    for name in names(app):  # every name that is told is taken
        assert app.post("/api/show", model=name)["details"]["family"] == "gemma3"
    [tiny] = [model for model in app.ask("GET", "/api/tags").json()["models"] if model["name"] == "tiny:latest"]
    assert tiny["model"] == "tiny:latest"
    assert tiny["size"] == (TINY / "model.safetensors").stat().st_size
    assert len(tiny["digest"]) == 64
    assert int(tiny["digest"], 16)
    assert tiny["details"] | {"parameter_size": ""} == {
        "parent_model": "",
        "format": "safetensors",
        "family": "gemma3",
        "families": ["gemma3"],
        "parameter_size": "",
        "quantization_level": "BF16",
    }
    assert tiny["capabilities"] == ["completion", "vision", "tools"]
    assert datetime.fromisoformat(tiny["modified_at"]).tzinfo is not None


def test_a_model_that_is_half_there_is_not_listed_and_breaks_nothing(app, home):
    folder = pull_by_hand("me/broken")
    (folder / "config.json").write_text("{")
    assert "me/broken:latest" in names(app)  # it can be named; what is wrong is told when it is loaded
    details = app.post("/api/show", model="me/broken")["details"]
    assert (details["format"], details["quantization_level"]) == ("", "")
    (home / "created").mkdir()
    (home / "created" / "odd.modelfile").write_text("FROM no-such-model\n")
    assert "odd:latest" not in names(app)


def test_digests_tell_models_apart_and_stay_while_they_do(app):
    def digest(name):
        return next(m["digest"] for m in app.ask("GET", "/api/tags").json()["models"] if m["name"] == name)

    folder = pull_by_hand("me/other")
    app.post("/api/copy", source="me/other", destination="again")
    before = digest("me/other:latest")
    assert before == digest("me/other:latest")
    assert digest("again:latest") != before
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert digest("me/other:latest") != before


def test_show_tells_what_the_checkpoint_says(app):
    """Against `gemworks show`, which opens the checkpoint with the code that loads it."""
    from gemworks.cli.show import describe
    from gemworks.weights.hub import resolve

    wanted = describe(resolve("tiny"))
    told = app.post("/api/show", model="tiny")
    info = told["model_info"]
    assert info["general.architecture"] == "gemma3"
    assert info["general.parameter_count"] == wanted["parameters"]
    assert info["gemma3.context_length"] == wanted["context"]
    assert info["gemma3.embedding_length"] == wanted["model_dim"]
    assert info["gemma3.feed_forward_length"] == wanted["ffw_dim"]
    assert info["gemma3.block_count"] == wanted["layers"]["local"] + wanted["layers"]["global"]
    assert info["gemma3.attention.head_count"] == wanted["num_heads"]
    assert info["gemma3.attention.head_count_kv"] == wanted["num_kv_heads"]
    assert info["gemma3.attention.key_length"] == wanted["head_dim"]
    assert info["gemma3.attention.sliding_window"] == wanted["layers"]["window"]
    assert info["gemma3.vision.image_size"] == wanted["vision"]["image_size"]
    assert info["gemma3.mm.tokens_per_image"] == wanted["vision"]["tokens_per_image"]
    assert told["details"]["format"] == wanted["format"]
    assert told["details"]["quantization_level"] == next(iter(wanted["stored_as"]))
    assert told["capabilities"] == ["completion", "vision", "tools"]
    parameters = dict(line.split() for line in told["parameters"].splitlines())
    assert {name: float(value) for name, value in parameters.items()} == {
        name: wanted["generation"][name] for name in ("temperature", "top_k", "top_p")
    }
    assert is_gemma_template(told["template"])
    assert parse_modelfile(told["modelfile"]).base == "tiny"
    assert "tensors" not in told
    assert app.post("/api/show", name="tiny", verbose=True)["tensors"][0]["shape"]


def test_facts_of_gguf_files_are_those_of_the_checkpoint(tmp_path):
    from gemworks.weights.checkpoint import open_checkpoint
    from gemworks.weights.convert import convert

    with pytest.warns(GemworksWarning, match="text half alone"):
        convert(TINY, tmp_path / "tiny.gguf")
    found = facts.read(tmp_path / "tiny.gguf")
    with open_checkpoint(tmp_path / "tiny.gguf") as checkpoint:
        assert found.config == checkpoint.config
        assert found.num_parameters == checkpoint.num_parameters
        assert found.is_chat == checkpoint.is_chat
    assert found.format == "gguf"
    assert found.level in ("BF16", "F16", "F32")
    assert found.vision is None


def test_quantized_directories_say_their_format(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config["gemworks_quantization"] = {"version": 1, "formats": {"a": "int4-b32", "b": "int4-b32", "c": "int8"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert facts.read(folder).level == "int4-b32"


def test_a_created_model_is_shown_as_it_was_made(app):
    made = {
        "system": "Answer like a pirate.",
        "parameters": {"temperature": 0.3, "stop": ["Arr", "Ahoy"], "num_predict": -1, "num_ctx": 256, "num_gpu": 1},
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}],
        "license": ["free", "for all"],
    }
    statuses = [line["status"] for line in app.lines("/api/create", model="pirate", **{"from": "tiny"}, **made)]
    assert statuses[-1] == "success"
    told = app.post("/api/show", model="pirate:latest")
    assert told["system"] == made["system"]
    assert told["messages"] == made["messages"]
    assert told["license"] == "free\nfor all"
    assert told["details"]["parent_model"] == "tiny"
    lines = [line.split(None, 1) for line in told["parameters"].splitlines()]
    assert [value for name, value in lines if name == "stop"] == ['"Arr"', '"Ahoy"']
    assert dict(lines) | {"stop": ""} == {
        "temperature": "0.3", "top_k": "64", "top_p": "0.95", "num_predict": "-1", "num_ctx": "256", "stop": ""
    }  # fmt: skip
    stored = store.read_created("pirate")
    assert stored is not None
    assert stored == parse_modelfile(told["modelfile"])
    assert stored.parameters["context"] == 256


def test_a_created_model_can_be_made_from_a_created_one(app):
    app.post("/api/create", model="pirate", stream=False, **{"from": "tiny"}, system="Arr", parameters={"top_k": 5})
    app.post("/api/create", model="captain", stream=False, **{"from": "pirate"}, parameters={"seed": 1})
    made = store.read_created("captain")
    assert made is not None
    assert (made.base, made.system, dict(made.parameters)) == ("tiny", "Arr", {"top_k": 5, "seed": 1})


def test_creating_again_lets_the_old_model_go(app):
    app.post("/api/create", model="pirate", stream=False, **{"from": "tiny"})
    app.post("/api/generate", model="pirate", keep_alive=-1)
    assert [loaded.name for loaded in app.host.loaded()] == ["pirate"]
    app.post("/api/create", model="pirate", stream=False, **{"from": "tiny"}, system="Arr")
    assert app.host.loaded() == []


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"model": "x"}, 400, "from"),
        ({"model": "x", "from": "no-such"}, 404, "not found"),
        ({"model": "x", "from": "/etc"}, 404, "not found"),
        ({"model": "tiny", "from": "tiny"}, 400, "released model"),
        ({"model": "gemma3:1b", "from": "tiny"}, 400, "released model"),
        ({"model": "../x", "from": "tiny"}, 400, "name"),
        ({"from": "tiny"}, 400, "model is required"),
        ({"model": "x", "from": "tiny", "quantize": "q4_0"}, 400, "quantize"),
        ({"model": "x", "from": "tiny", "adapters": {"a": "b"}}, 400, "adapters"),
        ({"model": "x", "from": "tiny", "template": "[INST]{{ .Prompt }}"}, 400, "TEMPLATE"),
        ({"model": "x", "from": "tiny", "parameters": {"temperature": -1}}, 400, "options.temperature"),
        ({"model": "x", "from": "tiny", "messages": [{"role": "assistant", "content": "y"}]}, 400, "MESSAGE"),
        ({"model": "x", "files": {"../m.gguf": "sha256:" + "0" * 64}}, 400, "plain name"),
        ({"model": "x", "files": {"m.gguf": "sha256:0"}}, 400, "64 hex digits"),
        ({"model": "x", "files": {"m.gguf": "sha256:" + "0" * 64}}, 400, "was not sent"),
    ],
)
def test_nothing_is_created_of_what_is_wrong(app, body, status, named):
    assert named in app.error("/api/create", status, **body)
    assert store.list_created() == []


def test_copy_and_delete(app):
    app.post("/api/create", model="pirate", stream=False, **{"from": "tiny"}, system="Arr")
    app.post("/api/copy", source="pirate:latest", destination="captain:latest")
    made = store.read_created("captain")
    assert made is not None
    assert made.system == "Arr"
    assert "not found" in app.error("/api/copy", 404, source="no-such", destination="x")
    assert "released model" in app.error("/api/copy", source="pirate", destination="gemma3:4b")
    app.post("/api/generate", model="captain", keep_alive=-1)
    assert app.ask("DELETE", "/api/delete", {"model": "captain"}).status_code == 200
    assert app.host.loaded() == []
    assert names(app) == ["tiny:latest", "pirate:latest"]
    assert "not found" in app.error("/api/delete", 404, "DELETE", model="captain")
    assert "part of Gemworks" in app.error("/api/delete", 400, "DELETE", model="tiny")


def test_a_pulled_model_others_are_made_from_stays(app):
    folder = pull_by_hand("me/base")
    app.post("/api/create", model="pirate", stream=False, **{"from": "me/base"})
    assert "pirate is made from it" in app.error("/api/delete", 400, "DELETE", model="me/base")
    app.ask("DELETE", "/api/delete", {"name": "pirate"})
    assert app.ask("DELETE", "/api/delete", {"name": "me/base"}).status_code == 200
    assert not folder.exists()


def test_one_format_of_several_is_deleted_alone(app):
    folder = store.pulled_path("me/base")
    folder.mkdir(parents=True)
    for name in ("base-Q4_0.gguf", "base-Q8_0.gguf"):
        (folder / name).write_bytes(b"GGUF")
    assert names(app) == ["tiny:latest", "me/base:Q4_0", "me/base:Q8_0"]
    assert app.ask("DELETE", "/api/delete", {"model": "me/base:Q8_0"}).status_code == 200
    assert [path.name for path in folder.iterdir()] == ["base-Q4_0.gguf"]


def send(app, data: bytes, digest: str | None = None):
    digest = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"
    return digest, app.ask("POST", f"/api/blobs/{digest}", data)


def test_blobs_are_kept_when_their_digest_is_right(app, home):
    data = bytes(range(256)) * 9000  # more than one block
    digest, response = send(app, data)
    assert response.status_code == 201
    assert (home / "blobs" / digest.replace(":", "-")).read_bytes() == data
    assert app.ask("HEAD", f"/api/blobs/{digest}").status_code == 200
    assert send(app, data)[1].status_code == 200
    _, response = send(app, b"other", digest="sha256:" + "1" * 64)
    assert response.status_code == 400
    assert "digest mismatch" in response.json()["error"]
    assert app.ask("HEAD", "/api/blobs/sha256:" + "1" * 64).status_code == 404
    assert app.ask("HEAD", "/api/blobs/..").status_code in (400, 404)
    assert app.ask("POST", "/api/blobs/sha256:../../x", b"").status_code in (400, 404)
    assert [path.name for path in (home / "blobs").iterdir()] == [digest.replace(":", "-")]


def test_a_blob_larger_than_the_disk_is_refused_before_it_comes(app, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    _, response = send(app, bytes(101))
    assert response.status_code == 500
    assert "100 free" in response.json()["error"]


def test_a_model_of_files_that_were_sent(app, home):
    files = {}
    for path in TINY.iterdir():
        if path.suffix in (".json", ".safetensors"):
            files[path.name], _ = send(app, path.read_bytes())
    assert app.post("/api/create", model="mine", files=files, stream=False) == {"status": "success"}
    assert app.post("/api/show", model="mine")["model_info"]["gemma3.context_length"] == 1024
    made = store.read_created("mine")
    assert made is not None
    folder = Path(made.base)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert (folder / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    app.ask("DELETE", "/api/delete", {"model": "mine"})
    assert not folder.exists()


def test_files_that_are_no_model_are_told_so(app, home):
    digest, _ = send(app, b"GGUF but not really")
    message = app.error("/api/create", 400, model="mine", files={"model.gguf": digest})
    assert message.startswith("files: ")
    assert store.list_created() == []
    assert list((home / "uploads").iterdir()) == []


def test_unused_blobs_go_after_a_day(app, home, monkeypatch):
    digest, _ = send(app, b"old")
    uploads.prune()
    assert uploads.blob_size(digest) == 3
    later = uploads.time.time() + 100_000
    monkeypatch.setattr(uploads.time, "time", lambda: later)
    uploads.prune()
    assert uploads.blob_size(digest) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tiny", "tiny:latest"),
        ("gemma3:1b", "gemma3:1b"),
        ("me/pirate", "me/pirate:latest"),
        ("me/pirate:v2", "me/pirate:v2"),
        ("./dir", "./dir"),
        ("model.gguf", "model.gguf"),
    ],
)
def test_names_have_a_tag(name, told):
    assert tagged(name) == told


def test_times_are_written_as_clients_read_them():
    assert rfc3339(0.5) == "1970-01-01T00:00:00.500000Z"
    assert datetime.fromisoformat(rfc3339(float("inf"))).year == 9999
