"""list, rm, create, show and convert: the models of this machine."""

import json
import os

import pytest
from text_model import save_text_model

from gemworks.weights import hub, store
from gemworks.weights.modelfile import Modelfile

# The checkpoint fixture: embedding, and seven layers of q, k and v, o, gate and up and down, norms; the final norm.
PARAMETERS = 160 * 48 + 7 * (64 * 48 + 2 * 32 * 48 + 48 * 64 + 3 * 64 * 48 + 4 * 48 + 2 * 16) + 48


@pytest.fixture
def pulled():
    folder = store.pulled_path("google/gemma-3-1b-it")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * 5000)
    return folder


@pytest.fixture
def write(tmp_path):
    def to(text, name="Modelfile"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


def test_list_shows_pulled_and_created_models(run_command, pulled, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "TINY", tmp_path / "nothing")
    monkeypatch.setenv("GEMWORKS_CACHE", str(tmp_path / "cache"))  # other tests may have packed models
    store.save_created("pirate", Modelfile(base="gemma3:1b"))
    assert run_command("list") == (
        0,
        "NAME        SOURCE                 SIZE   MODIFIED\n"
        "gemma3:1b   google/gemma-3-1b-it   5 kB   just now\n"
        "pirate      from gemma3:1b            -   just now\n",
        "",
    )
    found = json.loads(run_command("list", "--json")[1])["models"]
    assert (found[0]["name"], found[0]["kind"], found[0]["size_bytes"]) == ("gemma3:1b", "pulled", 5000)
    assert found[0]["path"] == str(pulled)


def test_rm_removes_and_names_what_is_made_from_it(run_command, pulled):
    store.save_created("pirate", Modelfile(base="gemma3:1b"))
    code, out, err = run_command("rm", "gemma3:1b")
    assert (code, out) == (0, "Removed gemma3:1b.\n")
    assert err == "Warning: pirate is made from gemma3:1b.\n"
    assert not pulled.exists()


def test_rm_of_both_does_not_warn(run_command, pulled):
    store.save_created("pirate", Modelfile(base="gemma3:1b"))
    code, out, err = run_command("rm", "gemma3:1b", "pirate", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"removed": ["gemma3:1b", "pirate"], "freed_bytes": 5000}


def test_rm_looks_up_every_name_before_anything_goes(run_command, pulled):
    code, out, err = run_command("rm", "gemma3:1b", "gemma3:1bb")
    assert (code, out) == (2, "")
    assert err == (
        'Error: there is no model "gemma3:1bb" on this machine. Did you mean "gemma3:1b"?\nSee: gemworks list\n'
    )
    assert pulled.exists()


def test_rm_of_tiny_is_refused(run_command):
    assert run_command("rm", "tiny")[2] == "Error: tiny is part of Gemworks and cannot be removed.\n"


def test_rm_asks_in_a_terminal(run_command, pulled, monkeypatch):
    from gemworks.cli import console

    monkeypatch.setattr(console, "can_ask", lambda: True)
    asked = []
    monkeypatch.setattr(console, "confirm", lambda question, default: asked.append((question, default)) or False)
    code, _, err = run_command("rm", "gemma3:1b")
    assert (code, err) == (1, "Nothing was removed.\n")
    assert asked == [("Remove gemma3:1b?", False)] and pulled.exists()
    assert run_command("rm", "gemma3:1b", "--yes")[0] == 0
    assert len(asked) == 1


def test_create_stores_what_the_file_says(run_command, pulled, write):
    file = write("FROM gemma3:1b\nPARAMETER temperature 0.2\nPARAMETER num_gpu 1\nSYSTEM Ahoy.\n")
    code, out, err = run_command("create", "pirate", "-f", file)
    assert (code, out) == (0, "Created pirate from gemma3:1b. Try: gemworks run pirate\n")
    assert err == "Not needed here and left out: num_gpu.\n"
    assert store.read_created("pirate") == Modelfile(base="gemma3:1b", parameters={"temperature": 0.2}, system="Ahoy.")


def test_create_from_a_created_model_stands_alone(run_command, pulled, write):
    run_command("create", "pirate", "-f", write("FROM gemma3:1b\nSYSTEM Ahoy.\n"))
    assert run_command("create", "parrot", "-f", write("FROM pirate\nPARAMETER seed 1\n"))[0] == 0
    assert run_command("rm", "pirate")[0] == 0
    assert store.read_created("parrot") == Modelfile(base="gemma3:1b", parameters={"seed": 1}, system="Ahoy.")


def test_a_relative_from_is_relative_to_the_modelfile(run_command, write, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir("/")
    assert run_command("create", "mine", "-f", write("FROM ./weights\n"))[0] == 0
    assert store.read_created("mine").base == str(tmp_path / "weights")


OLLAMA_TEMPLATE = '''TEMPLATE """{{- range $i, $_ := .Messages }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ .Content }}<end_of_turn>
{{ else }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}{{ end }}<start_of_turn>model
"""'''


def test_gemmas_own_template_is_accepted(run_command, pulled, write):
    code, _, err = run_command("create", "mine", "-f", write(f"FROM gemma3:1b\n{OLLAMA_TEMPLATE}\n"))
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "FROM gemma3:1b\nTEMPLATE [INST] {{ .Prompt }} [/INST]\n",
            "{file}: TEMPLATE must be Gemma's own chat template, and this one is another.\nGemworks always renders",
        ),
        ("FROM gemma3:1b\nPARAMETER top_p 2\n", "{file}: PARAMETER top_p must be above 0 and at most 1, got 2.0."),
        ("FROM gemma3:1b\nPARAMETER num_ctx 1\n", "{file}: context must be at least 2 tokens, got 1."),
        ("FROM gemma3:4b\n", "{file}: FROM gemma3:4b: gemma3:4b is not on this machine.\nFetch it with: gemworks pull"),
        ("FROM ./gone\n", '{file}: FROM ./gone: there is no file or directory "./gone".'),
        (
            "FROM gemma3:1b\nMESSAGE user hi\n",
            "{file}: MESSAGE lines must alternate user and assistant, beginning with user and ending with assistant, "
            "got user.",
        ),
        ("FROM gemma3:1b\nFOO x\n", "{file}:2: there is no instruction FOO.\n"),
    ],
)
def test_a_modelfile_that_will_not_do_creates_nothing(run_command, pulled, write, text, message):
    file = write(text)
    code, out, err = run_command("create", "mine", "-f", file)
    assert (code, out) == (2, "")
    assert err.startswith("Error: " + message.format(file=file))
    assert store.list_created() == []


@pytest.mark.parametrize("name", ["gemma3:1b", "gemma3", "tiny", "gemma-3-1b-it"])
def test_the_names_of_released_models_are_taken(run_command, pulled, write, name):
    code, _, err = run_command("create", name, "-f", write("FROM gemma3:1b\n"))
    assert code == 2
    assert err == f'Error: "{name}" is the name of a released model. Choose another name.\n'


def test_a_missing_modelfile(run_command, tmp_path):
    code, _, err = run_command("create", "mine", "-f", tmp_path / "none")
    assert code == 2
    assert err == f"Error: {tmp_path / 'none'} cannot be read: No such file or directory.\nName a Modelfile with -f.\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_may_not_be_written(run_command, pulled, write, home):
    home.chmod(0o500)
    code, _, err = run_command("create", "mine", "-f", write("FROM gemma3:1b\n"))
    home.chmod(0o700)
    assert code == 2 and "cannot be written: Permission denied" in err


def test_show_reads_a_model_without_loading_it(run_command, checkpoint):
    code, out, err = run_command("show", checkpoint)
    assert (code, err) == (0, "")
    assert out.splitlines()[:6] == [
        f"model          {checkpoint}",
        "architecture   gemma3, chat",
        "parameters     138K (138,320)",
        "context        512 tokens",
        "layers         7 (6 local, window 8; 1 global)",
        "width          48, feed-forward 64",
    ]
    assert "stored as      safetensors, F32\n" in out
    assert "samples with   temperature 0.7, top_k 64, top_p 0.95\n" in out


def test_show_json_has_the_numbers(run_command, checkpoint):
    found = json.loads(run_command("show", checkpoint, "--json")[1])
    assert found["parameters"] == PARAMETERS
    assert found["size_bytes"] == 4 * PARAMETERS
    assert found["layers"] == {"local": 6, "global": 1, "window": 8}
    assert (found["context"], found["is_chat"], found["stored_as"]) == (512, True, {"F32": 4 * PARAMETERS})
    assert found["generation"] == {"temperature": 0.7, "top_k": 64, "top_p": 0.95, "eos_ids": [1, 106]}


def test_show_of_a_created_model_adds_what_it_sets(run_command, checkpoint, write):
    run_command("create", "pirate", "-f", write(f"FROM {checkpoint}\nPARAMETER seed 3\nSYSTEM Ahoy.\n"))
    _, out, _ = run_command("show", "pirate")
    assert out.endswith(f"made from        {checkpoint}\nparameters set   seed 3\nsystem           Ahoy.\n")
    assert run_command("show", "pirate", "--modelfile")[1] == f"FROM {checkpoint}\nPARAMETER seed 3\nSYSTEM Ahoy.\n"


def test_convert_writes_a_file_that_show_reads(run_command, checkpoint, tmp_path):
    out = tmp_path / "half"
    code, text, err = run_command("convert", checkpoint, out, "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert text.startswith(f"Wrote {out} (") and text.endswith(").\n")
    assert json.loads(run_command("show", out, "--json")[1])["stored_as"] == {"BF16": 2 * PARAMETERS}


@pytest.mark.parametrize(("flags", "embedding"), [([], "Q8_0"), (["--pure"], "Q4_0")])
def test_convert_chooses_the_embeddings_type(run_command, tmp_path, flags, embedding):
    from gemworks.weights.checkpoint import open_checkpoint

    out = tmp_path / "tiny.gguf"
    code, _, err = run_command("convert", save_text_model(tmp_path / "text"), out, "--outtype", "q4_0", *flags)
    assert (code, err) == (0, "")
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.entries["embed.weight"].dtype == embedding
        assert checkpoint.entries["layers.0.ffw.up.weight"].dtype == "Q4_0"


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("o.gguf", ["--dtype", "bfloat16"], "--dtype is not for a .gguf file, and {out} is one. Use --outtype."),
        ("o", ["--outtype", "q8_0"], "--outtype is not for a directory, and {out} is one. Use --dtype."),
        (
            "o",
            ["--dtype", "f32", "--outtype", "f32"],
            "--outtype is for a .gguf file and --dtype for a directory; give one",
        ),
        ("o.gguf", ["--pure"], "--pure is about the embedding of a q4_0 file. Give it with --outtype q4_0"),
        ("o", ["--dtype", "int4"], "outtype of a safetensors directory must be one of bfloat16"),
    ],
)
def test_convert_refuses_what_makes_no_sense(run_command, checkpoint, tmp_path, out, flags, message):
    code, text, err = run_command("convert", checkpoint, tmp_path / out, *flags)
    assert (code, text) == (2, "")
    assert err.startswith("Error: " + message.format(out=tmp_path / out))
    assert not (tmp_path / out).exists()
