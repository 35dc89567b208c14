"""What the names of models mean, and where they lead."""

import pytest

from gemworks.errors import ConfigError, DownloadError
from gemworks.weights import hub, store
from gemworks.weights.download import wanted_files
from gemworks.weights.fetch import RemoteFile
from gemworks.weights.hub import Repository
from gemworks.weights.modelfile import Modelfile


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMWORKS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def put(repository, *files):
    folder = store.pulled_path(repository)
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("gemma3", "google/gemma-3-4b-it"),
        ("gemma3:latest", "google/gemma-3-4b-it"),
        ("gemma3:1b", "google/gemma-3-1b-it"),
        ("Gemma3:1B", "google/gemma-3-1b-it"),
        ("gemma3:27b-it", "google/gemma-3-27b-it"),
        ("gemma3:12b-pt", "google/gemma-3-12b-pt"),
        ("gemma3:270m", "google/gemma-3-270m-it"),
        ("gemma3:270m-pt", "google/gemma-3-270m"),
        ("gemma3:4b-it-qat", "google/gemma-3-4b-it-qat-q4_0-gguf"),
        ("gemma3:4b-pt-qat", "google/gemma-3-4b-pt-qat-q4_0-gguf"),
        ("gemma3:270m-it-qat", "google/gemma-3-270m-it-qat-q4_0-unquantized"),
        ("gemma3:1b-it-qat-unquantized", "google/gemma-3-1b-it-qat-q4_0-unquantized"),
        ("gemma-3-1b-it", "google/gemma-3-1b-it"),
        ("google/gemma-3-1b-it", "google/gemma-3-1b-it"),
        ("someone/tuned", "someone/tuned"),
        ("hf.co/someone/tuned", "someone/tuned"),
        ("https://huggingface.co/someone/tuned/", "someone/tuned"),
    ],
)
def test_names_mean_repositories(name, repository):
    assert hub.repository_of(name) == Repository(repository)


def test_a_format_follows_a_colon():
    assert hub.repository_of("hf.co/someone/g-GGUF:q4_k_m") == Repository("someone/g-GGUF", "Q4_K_M")


@pytest.mark.parametrize("name", ["gemma3:2b", "gemma4", "a/b/c", "../x", "a/..", "", "tiny"])
def test_other_names_mean_none(name):
    assert hub.repository_of(name) is None


@pytest.mark.parametrize(
    ("name", "size"),
    [("27b", "27b"), ("gemma3", "4b"), ("gemma-3-270m", "270m"), ("google/gemma-3-12b-it-qat-q4_0-gguf", "12b")],
)
def test_released_sizes_are_known_by_name(name, size):
    assert hub.released_size(name) == size
    assert hub.released_size("someone/gemma-3-1b-it") is None


def test_short_names_are_what_people_say():
    assert hub.short_name("google/gemma-3-1b-it") == "gemma3:1b"
    assert hub.short_name("google/gemma-3-4b-it-qat-q4_0-gguf") == "gemma3:4b-it-qat"
    assert hub.short_name("someone/tuned") == "someone/tuned"


def test_tiny_is_inside_the_package():
    assert hub.resolve("tiny").path.parts[-3:] == ("gemworks", "assets", "tiny")


def test_a_pulled_model_is_found_by_all_its_names():
    folder = put("google/gemma-3-1b-it", "model.safetensors")
    for name in ("gemma3:1b", "gemma-3-1b-it", "google/gemma-3-1b-it", "hf.co/google/gemma-3-1b-it"):
        assert hub.resolve(name).path == folder
        assert hub.resolve(name).name == name


def test_a_gguf_repository_leads_to_its_file():
    folder = put("google/gemma-3-1b-it-qat-q4_0-gguf", "gemma-3-1b-it-q4_0.gguf", "mmproj-model-f16.gguf")
    assert hub.resolve("gemma3:1b-it-qat").path == folder / "gemma-3-1b-it-q4_0.gguf"


def test_of_several_gguf_files_the_format_decides():
    folder = put("someone/g", "g-Q8_0.gguf", "g-Q4_0.gguf")
    assert hub.resolve("someone/g:Q8_0").path == folder / "g-Q8_0.gguf"
    with pytest.raises(ConfigError) as caught:
        hub.resolve("someone/g")
    assert str(caught.value) == (
        "someone/g has 2 GGUF files here: g-Q4_0.gguf, g-Q8_0.gguf.\nName the one to load, as in someone/g:Q4_0."
    )
    with pytest.raises(ConfigError, match="someone/g:F16 is not on this machine"):
        hub.resolve("someone/g:F16")


def test_paths_are_taken_as_they_are(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    assert hub.resolve(str(file)).path == file
    assert hub.resolve(tmp_path).path == tmp_path


def test_a_created_model_leads_to_its_base():
    folder = put("google/gemma-3-1b-it", "model.safetensors")
    made = Modelfile(base="gemma3:1b", system="Ahoy.")
    store.save_created("pirate", made)
    found = hub.resolve("pirate:latest")
    assert (found.path, found.name, found.modelfile) == (folder, "pirate", made)
    store.remove_pulled("google/gemma-3-1b-it")
    with pytest.raises(ConfigError) as caught:
        hub.resolve("pirate")
    assert str(caught.value) == (
        "pirate is made from gemma3:1b. gemma3:1b is not on this machine.\nFetch it with: gemworks pull gemma3:1b"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma3:1b", "gemma3:1b is not on this machine.\nFetch it with: gemworks pull gemma3:1b"),
        ("gemma3-1b", 'no model named "gemma3-1b". Did you mean "gemma3:1b"?\nKnown: tiny, gemma3:270m, gemma3:1b'),
        ("tinny", 'no model named "tinny". Did you mean "tiny"?\n'),
        ("zzz", 'no model named "zzz".\nKnown: tiny, '),
        ("gogle/gemma-3-1b-it", 'gogle/gemma-3-1b-it is not on this machine. Did you mean "google/gemma-3-1b-it"?\n'),
        ("./nothing", 'there is no file or directory "./nothing".'),
        ("nothing.gguf", 'there is no file or directory "nothing.gguf".'),
        ("gemma3n:e2b", "gemma3n:e2b: this release runs Gemma 3 text models; Gemma 3n comes later."),
        ("google/shieldgemma-27b", "google/shieldgemma-27b: this is a Gemma 2 model that judges texts; this release"),
        (
            "shieldgemma-2-4b-it",
            "shieldgemma-2-4b-it is not on this machine.\nFetch it with: gemworks pull shieldgemma-2-4b-it",
        ),
    ],
)
def test_what_is_not_here_is_told_with_the_next_step(name, message):
    with pytest.raises(ConfigError) as caught:
        hub.resolve(name)
    assert str(caught.value).startswith(message)


def test_an_unfinished_pull_is_not_a_model():
    store.partial_path("google/gemma-3-1b-it").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"not on this machine\. A pull of it was begun and not finished\."):
        hub.resolve("gemma3:1b")


def test_a_base_that_is_created_is_merged_and_a_path_becomes_absolute(tmp_path):
    store.save_created("pirate", Modelfile(base="tiny", system="Ahoy.", parameters={"seed": 1}))
    merged = hub.merged_base(Modelfile(base="pirate", parameters={"top_k": 3}), tmp_path)
    assert merged == Modelfile(base="tiny", system="Ahoy.", parameters={"seed": 1, "top_k": 3})
    (tmp_path / "dir").mkdir()
    assert hub.merged_base(Modelfile(base="./dir"), tmp_path).base == str(tmp_path / "dir")


def test_dependents_are_found_under_any_name_of_the_repository():
    store.save_created("pirate", Modelfile(base="gemma-3-1b-it"))
    store.save_created("poet", Modelfile(base="gemma3:4b"))
    assert hub.dependents("google/gemma-3-1b-it") == ["pirate"]


@pytest.mark.parametrize(
    ("file", "format"),
    [
        ("gemma-3-1b-it-Q4_K_M.gguf", "Q4_K_M"),
        ("gemma-3-1b-it-q4_0.gguf", "Q4_0"),
        ("model-bf16.gguf", "BF16"),
        ("g.IQ3_XS.gguf", "IQ3_XS"),
        ("model.gguf", ""),
    ],
)
def test_a_files_name_tells_its_format(file, format):
    assert hub.format_of(file) == format


def remote(*names):
    return [RemoteFile(name, 1, "0" * 40) for name in names]


def names(files):
    return [file.name for file in files]


def test_only_what_loading_needs_is_wanted():
    listing = remote(
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        *("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", ".gitattributes", "README.md"),
        *(
            "pytorch_model.bin",
            "modeling.py",
            "onnx/model.safetensors",
            "../up.json",
            "..json",
            "/etc/x.json",
            "a\\b.json",
        ),
    )
    assert names(wanted_files(listing, Repository("a/b"))) == [
        *("chat_template.jinja", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("model.safetensors.index.json", "tokenizer.json", "tokenizer.model"),
    ]


def test_the_choice_among_gguf_files_is_asked_best_first():
    listing = remote("g-F16.gguf", "g-Q6_K.gguf", "g-Q4_0.gguf", "mmproj-f16.gguf", "g-IQ2_M.gguf", "config.json")
    asked = []
    files = wanted_files(listing, Repository("a/b"), lambda names: asked.append(names) or names[1])
    assert asked == [["g-Q4_0.gguf", "g-Q6_K.gguf", "g-F16.gguf"]]
    assert names(files) == ["config.json", "g-Q6_K.gguf"]


@pytest.mark.parametrize(
    ("listing", "format", "message"),
    [
        (["model.bin"], None, "a/b must hold .safetensors or .gguf files to be loaded, and it holds: model.bin."),
        ([], None, "a/b must hold .safetensors or .gguf files to be loaded, and it holds: nothing."),
        (["g-Q4_0.gguf", "g-F16.gguf"], "Q8_0", "a/b has no GGUF file in Q8_0. It has: F16, Q4_0."),
        (
            ["g-Q2_K.gguf"],
            None,
            "a/b has GGUF files in Q2_K only, which this release does not read.\nFormats that load",
        ),
    ],
)
def test_a_repository_without_a_model_says_what_it_has(listing, format, message):
    with pytest.raises(DownloadError) as caught:
        wanted_files(remote(*listing), Repository("a/b", format))
    assert str(caught.value).startswith(message)


def test_file_that_is_no_model_is_told_what_it_must_be(tmp_path):
    """Any existing file given by its path reaches the loader, also without a suffix, as Ollama keeps its models."""
    from gemworks.errors import CheckpointError
    from gemworks.weights.checkpoint import open_checkpoint

    path = tmp_path / "sha256-00"
    path.write_text("not a model")
    assert hub.resolve(str(path)).path == path
    with pytest.raises(CheckpointError, match=r"must be a \.gguf file, a \.safetensors file or a directory"):
        open_checkpoint(hub.resolve(path).path)
