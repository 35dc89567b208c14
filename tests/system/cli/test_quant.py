"""`gemworks run --quant` as processes: packed by the first, mapped by the next, mended when damaged."""

import json
import shutil

import ml_dtypes
import pytest
from small_models import random_arrays, small_config

from gemworks.ops import select
from gemworks.tokenizer import Tokenizer
from gemworks.weights.checkpoint import GenerationDefaults
from gemworks.weights.save import Source, save_hf

needs_kernels = pytest.mark.skipif(not select.packs_weights(), reason="nothing is packed without the native library")


@pytest.fixture(scope="module")
def model(chat_model, tmp_path_factory):
    """The chat model's tokenizer with bf16 matrices whose rows are whole blocks of 32."""
    folder = tmp_path_factory.mktemp("quant") / "model"
    config = small_config(vocab_size=Tokenizer.load(chat_model).size, model_dim=64, num_layers=2, head_dim=32)
    arrays = random_arrays(config, seed=1)
    arrays["embed.weight"] *= 4.0
    sources = {name: Source("BF16", lambda a=a: a.astype(ml_dtypes.bfloat16)) for name, a in arrays.items()}

    def tokenizer(out):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(chat_model / name, out)

    save_hf(folder, config, sources, generation=GenerationDefaults(eos_ids=(1, 5)), beside=tokenizer)
    return folder


@pytest.fixture
def run(gemworks, model, tmp_path):
    """run(*options) -> (token ids, stderr) of a greedy answer, with a cache of the test's own."""

    def run(*options, **variables):
        asked = ("run", model, "hi", "--temperature", 0, "--max-tokens", 8, "--json", *options)
        done = gemworks(*asked, GEMWORKS_CACHE=str(tmp_path / "cache"), **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["token_ids"], done.stderr

    run.packed = lambda: sorted((tmp_path / "cache" / "packed").glob("*.packed"))
    return run


@needs_kernels
def test_the_second_start_answers_alike_from_the_packed_file(run, gemworks, tmp_path):
    first, said = run("--quant", "int4-b32")
    assert said == ""
    [path] = run.packed()
    written = path.stat()
    assert run("--quant", "int4-b32") == (first, "")
    assert path.stat().st_ino == written.st_ino
    listed = gemworks("list", "--json", GEMWORKS_CACHE=str(tmp_path / "cache"))
    [entry] = json.loads(listed.stdout)["packed"]
    assert entry["path"] == str(path) and "layers.*=int4-b32" in entry["plan"]
    assert gemworks("rm", "--packed", GEMWORKS_CACHE=str(tmp_path / "cache")).returncode == 0
    assert run.packed() == []


@needs_kernels
def test_a_damaged_packed_file_is_built_again_with_one_line(run):
    first, _ = run("--quant", "int8", "--embed", "int4-b32")
    [path] = run.packed()
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x20
    path.write_bytes(data)
    again, said = run("--quant", "int8", "--embed", "int4-b32")
    assert again == first
    [line] = said.splitlines()
    assert line.startswith("Warning: ") and str(path) in line and line.endswith("it is built again.")
    assert run("--quant", "int8", "--embed", "int4-b32") == (first, "")


def test_without_kernels_nothing_is_packed(run):
    ids, said = run("--quant", "int8-b32", GEMWORKS_BACKEND="xla")
    assert len(ids) > 0 and said == "" and run.packed() == []


def test_a_wrong_format_is_refused_by_name(gemworks, model):
    done = gemworks("run", model, "hi", "--quant", "int3")
    assert done.returncode == 2
    assert done.stderr.startswith('Error: quant must be one of int4-b32, int4, int8-b32, int8, sfp8, bf16, got "int3".')
