"""Which rivals take part, and which files they run on."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from small_models import small_config

from gemworks.bench import models, rivals
from gemworks.bench.models import make_missing, specs
from gemworks.bench.rivals import Rivals, find
from gemworks.bench.system import SystemSpec
from gemworks.bench.vocabulary import save_made_up
from gemworks.errors import ConfigError
from gemworks.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def installed(monkeypatch):
    """installed("llama.cpp") makes exactly these rivals installed."""

    def install(*names):
        def version(package):
            if "llama.cpp" not in names:
                raise PackageNotFoundError(package)
            return "1"

        code = 0 if "openvino" in names else 1
        monkeypatch.setattr(rivals, "version", version)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code))

    return install


def test_all_means_those_that_are_installed(installed):
    installed("llama.cpp")
    assert find("all") == Rivals(llama_cpp=True)
    installed("openvino")
    assert find("all") == Rivals(openvino_python=sys.executable)
    installed()
    assert find("all") == Rivals()


def test_none_looks_for_nobody(installed):
    installed("llama.cpp", "openvino")
    assert find("none") == Rivals()


def test_openvino_may_live_in_another_python(installed):
    installed("openvino")
    assert find("openvino", "/opt/ov/bin/python") == Rivals(openvino_python="/opt/ov/bin/python")


def test_a_rival_that_is_named_and_not_installed_is_an_error_that_says_how_to_get_it(installed):
    installed()
    with pytest.raises(ConfigError, match=r'llama\.cpp is not installed here. pip install "gemworks\[bench-rivals\]"'):
        find("llama.cpp")
    with pytest.raises(ConfigError, match=r"openvino is not installed here\. in an environment of its own"):
        find("openvino")


def test_an_unknown_rival_is_refused():
    with pytest.raises(ConfigError, match=r'--rivals must be all, none or some of llama\.cpp, openvino, got "ollama"'):
        find("ollama")


def test_a_python_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="/no/python is not: No such file"):
        find("openvino", "/no/python")


def test_each_of_ours_is_followed_by_the_rival_of_the_same_formats(tmp_path):
    both = Rivals(llama_cpp=True, openvino_python="python")
    assert [spec.name for spec in specs("270m", tmp_path, both, 2, twin=True)] == [
        "ours int4-b32+int8",
        "llama.cpp q4_0",
        "ours int4-b32",
        "llama.cpp q4_0-pure",
        "ours int8-b32",
        "llama.cpp q8_0",
        "openvino int4",
        "xla bf16",
    ]
    # Rows of 2,560 are whole blocks of 256: llama.cpp's own Q4_0 file has a table in Q6_K.
    assert [spec.name for spec in specs("4b", tmp_path, both, 2, twin=False)] == [
        "ours int4-b32+int8",
        "llama.cpp q4_0",
        "ours int4-b32",
        "llama.cpp q4_0-q6_k",
        "openvino int4",
    ]
    assert [spec.name for spec in specs("1b", tmp_path, Rivals(), 2, twin=False)] == [
        "ours int4-b32+int8",
        "ours int4-b32",
        "ours int8-b32",
    ]


def test_formats_of_a_system_are_in_its_name():
    def formats(kind):
        return SystemSpec("ours", kind, "", 1).formats

    assert formats("int4-b32+int8") == ("int4-b32", "int8")
    assert formats("int4-b32") == ("int4-b32", "int4-b32")
    assert formats("bf16") == (None, None)


def test_without_a_tokenizer_a_made_up_vocabulary_goes_with_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "config_of", lambda size: small_config(vocab_size=1000))
    monkeypatch.setattr(models, "save_made_up", lambda folder: save_made_up(folder, 1000))
    said = []
    ready = make_missing("270m", [SystemSpec("xla", "bf16", str(tmp_path / "270m"), 1)], tmp_path, None, said.append)
    assert [spec.name for spec in ready] == ["xla bf16"]
    assert said[0] == f"making random weights: {tmp_path / '270m'}"
    assert "give --tokenizer DIR, or pull any Gemma 3" in said[1]
    tokenizer = Tokenizer.load(tmp_path / "270m")
    assert (tokenizer.size, tokenizer.bos_id, tokenizer.end_of_turn_id) == (1000, 2, 106)
    ids = tokenizer.encode("a blue sky, 2")
    assert tokenizer.decode(ids) == "a blue sky, 2"
    assert len(ids) < len("a blue sky, 2")  # pieces of several letters, as in a real vocabulary


def test_a_rival_whose_files_cannot_be_made_is_told_and_left_out(tmp_path):
    """Here OpenVINO's Python has no optimum-cli beside it."""
    (tmp_path / "270m").mkdir()
    (tmp_path / "270m" / "config.json").write_text("{}")
    said = []
    wanted = specs("270m", tmp_path, Rivals(openvino_python=str(tmp_path / "python")), 2, twin=False)
    ready = make_missing("270m", wanted, tmp_path, None, said.append)
    assert [spec.engine for spec in ready] == ["ours"] * 3
    assert said[0] == f"making {tmp_path / '270m-openvino-int4'}"
    assert f"{tmp_path / 'optimum-cli'} is not there to export" in said[1]


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_make", lambda *_: pytest.fail("made again"))
    (tmp_path / "1b").mkdir()
    (tmp_path / "1b" / "config.json").write_text("{}")
    wanted = specs("1b", tmp_path, Rivals(llama_cpp=True), 2, twin=False)
    for spec in wanted:
        if spec.engine == "llama.cpp":
            (tmp_path / f"1b-{spec.kind}.gguf").write_bytes(b"")
    assert make_missing("1b", wanted, tmp_path, None, print) == wanted
