"""Converting checkpoints: bits kept where the format allows, one tensor in memory, and never half an output."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gemworks.errors import CheckpointError, ConfigError, StorageError
from gemworks.model.config import five_local_one_global
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights import safetensors_write
from gemworks.weights.checkpoint import GenerationDefaults, open_checkpoint
from gemworks.weights.convert import cast, convert
from gemworks.weights.gguf_write import write_gguf
from gemworks.weights.names import expected_shapes, hf_from_ours, is_norm
from gemworks.weights.safetensors import SafetensorsFile
from gemworks.weights.save import Source, save_hf

BF16 = np.dtype(ml_dtypes.bfloat16)


def read_all(path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as checkpoint:
        return {name: np.array(checkpoint.read(name)) for name in checkpoint.entries}


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


def small_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """290 pieces in SentencePiece's form: control tokens, a run of spaces, bytes, letters and a few merges."""
    rows = [(name, 0.0, 3) for name in ("<pad>", "<eos>", "<bos>")] + [("<unk>", 0.0, 2)]
    rows += [(name, 0.0, 3) for name in ("<start_of_turn>", "<end_of_turn>")] + [("\u2581\u2581", 0.0, 4)]
    rows += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    rows += [(piece, -float(rank), 1) for rank, piece in enumerate(["he", "ll", "hell", "hello", "\u2581hello"])]
    rows += [(letter, -1000.0 - i, 1) for i, letter in enumerate("\u2581helowrdabcistuvy!")]
    pieces, scores, types = zip(*rows, strict=True)
    return list(pieces), list(scores), list(types)


@pytest.fixture
def with_tokenizer(tmp_path, tiny_config) -> Path:
    """A checkpoint with a tokenizer and a chat template beside it, rows for every piece."""
    config = replace(tiny_config, vocab_size=320)
    rng = np.random.default_rng(1)
    arrays = {name: rng.normal(size=shape).astype(BF16) for name, shape in expected_shapes(config).items()}
    tokenizer = Tokenizer.from_vocabulary(*small_vocabulary())
    directory = tmp_path / "with tokenizer"
    save_hf(
        directory,
        config,
        {name: Source("BF16", lambda a=array: a) for name, array in arrays.items()},
        generation=GenerationDefaults(eos_ids=(1, 5), temperature=0.75),
        beside=lambda partial: tokenizer.save(partial, chat_template="{{ bos_token }}template"),
    )
    return directory


def test_a_multimodal_checkpoint_becomes_a_text_checkpoint_bit_for_bit(save_model, weights, tmp_path, tiny_config):
    def add_vision(published):
        published["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(9, np.float32)

    source = save_model(layout="A", change=add_vision, shard_bytes=50_000)
    (source / "tokenizer.json").write_text("{}")
    (source / "preprocessor_config.json").write_text("{}")
    convert(source, tmp_path / "out")
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert_same(read_all(tmp_path / "out"), weights)
    file = SafetensorsFile(tmp_path / "out" / "model.safetensors")
    assert set(file.tensors) == {hf_from_ours(name, "C") for name in weights}
    assert all(span.begin % 64 == 0 for span in file.tensors.values())
    assert open_checkpoint(tmp_path / "out").config == tiny_config


def test_tensors_keep_their_own_dtypes_unless_one_is_asked_for(save_model, weights, tmp_path):
    def mix(published):
        published["model.norm.weight"] = published["model.norm.weight"].astype(np.float32)

    source = save_model(change=mix)
    convert(source, tmp_path / "same")
    found = read_all(tmp_path / "same")
    assert found["final_norm.scale"].dtype == np.float32 and found["embed.weight"].dtype == BF16
    for spelling, dtype in (("float32", np.float32), ("f16", np.float16), ("bfloat16", BF16)):
        convert(source, tmp_path / spelling, outtype=spelling)
        found = read_all(tmp_path / spelling)
        assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
        for name, array in weights.items():
            np.testing.assert_array_equal(found[name], array.astype(dtype), err_msg=name)
        assert json.loads((tmp_path / spelling / "config.json").read_text())["dtype"] == np.dtype(dtype).name


def test_generation_defaults_and_ids_go_along(with_tokenizer, tmp_path):
    convert(with_tokenizer, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.generation == GenerationDefaults(eos_ids=(1, 5), temperature=0.75)
        assert checkpoint.chat_template == "{{ bos_token }}template" and checkpoint.is_chat
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [1, 5]


def test_shards_are_cut_where_asked(save_model, weights, tmp_path):
    convert(save_model(), tmp_path / "out", shard_bytes=50_000)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    data_bytes = [sum(span.end - span.begin for span in SafetensorsFile(shard).tensors.values()) for shard in shards]
    assert max(data_bytes) <= 50_000
    assert_same(read_all(tmp_path / "out"), weights)


def test_progress_counts_bytes_to_the_last(save_model, weights, tmp_path):
    seen = []
    convert(save_model(), tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    total = sum(array.nbytes for array in weights.values())
    assert len(seen) == len(weights) and seen[-1] == (total, total) and seen == sorted(seen)


@pytest.mark.parametrize("outtype", ["bf16", None])
def test_through_gguf_and_back_is_bit_equal(with_tokenizer, tmp_path, outtype):
    """bf16 norms survive the 1 that GGUF adds as long as they are not tiny, which trained norms are not."""
    convert(with_tokenizer, tmp_path / "model.gguf", outtype=outtype)
    convert(tmp_path / "model.gguf", tmp_path / "back")
    found, wanted = read_all(tmp_path / "back"), read_all(with_tokenizer)
    for name, array in wanted.items():
        if not is_norm(name):
            assert found[name].tobytes() == array.tobytes(), name
        else:
            large = np.abs(array.astype(np.float32)) > 2.0**-14
            np.testing.assert_array_equal(found[name][large], array[large], err_msg=name)
            np.testing.assert_allclose(found[name].astype(np.float32), array.astype(np.float32), atol=2**-22)
    with open_checkpoint(tmp_path / "back") as checkpoint, open_checkpoint(with_tokenizer) as before:
        assert checkpoint.config == before.config and checkpoint.generation == before.generation
        assert checkpoint.chat_template == before.chat_template


def test_the_tokenizer_goes_through_gguf_with_the_same_ids(with_tokenizer, tmp_path):
    convert(with_tokenizer, tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back")
    before, after = Tokenizer.load(with_tokenizer), Tokenizer.load(tmp_path / "back")
    for text in ("hello hello", "  hello  world!", "h\u00e9llo\n", "<start_of_turn>", ""):
        assert after.encode(text) == before.encode(text)
    assert after.encode("hello hello") == [small_vocabulary()[0].index(piece) for piece in ("hello", "\u2581hello")]


@pytest.mark.parametrize(("stored", "dtype"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "BF16")])
def test_gguf_becomes_the_dtype_of_its_matrices(with_tokenizer, tmp_path, stored, dtype):
    with open_checkpoint(with_tokenizer) as checkpoint:
        write_gguf(checkpoint, None, tmp_path / "model.gguf", stored)
    convert(tmp_path / "model.gguf", tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert {entry.dtype for entry in checkpoint.entries.values()} == {dtype}


def test_gguf_without_a_tokenizer_beside_the_weights_is_refused(save_model, tmp_path):
    source = save_model()
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "out.gguf")
    assert str(caught.value) == (
        f"{source} must hold tokenizer.json or tokenizer.model, and it holds neither.\n"
        "A GGUF file carries its vocabulary: fetch the model's tokenizer into the same directory."
    )
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("out", "outtype", "message"),
    [
        ("out", "q4_0", 'outtype of a safetensors directory must be one of bfloat16, bf16, float32, f32, float16, f16, '
         'got "q4_0".\nQuantized outputs are GGUF files'),
        ("out.gguf", "q4_k", 'outtype of a GGUF file must be one of f32, f16, bf16, q8_0, q4_0, float32'),
        ("out.safetensors", None, "out.safetensors must be a directory (or end in .gguf)"),
        ("model", None, "must not be the input or a directory around it"),
        (".", None, "must not be the input or a directory around it"),
        ("taken", None, "taken exists already.\nChoose another name, or add --force to replace it."),
    ],
)  # fmt: skip
def test_an_output_that_will_not_do_is_refused_first(save_model, tmp_path, out, outtype, message):
    source = save_model()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("old")
    with pytest.raises(ConfigError) as caught:
        convert(source, tmp_path / out, outtype=outtype)
    assert message in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "taken"]


def test_force_replaces_and_an_error_keeps_the_old_one(save_model, weights, tmp_path, monkeypatch):
    out, source = tmp_path / "out", save_model()
    convert(source, out)
    os.utime(out / "config.json", (0, 0))

    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(safetensors_write, "write_file", fail)
    with pytest.raises(StorageError, match="out cannot be written: Input/output error"):
        convert(source, out, force=True, outtype="f32")
    assert (out / "config.json").stat().st_mtime == 0
    assert_same(read_all(out), weights)
    monkeypatch.undo()
    convert(source, out, force=True, outtype="f32")
    assert read_all(out)["embed.weight"].dtype == np.float32
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "out"]


def test_a_broken_input_writes_nothing(save_model, tmp_path):
    source = save_model(change=lambda published: published.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match="1 tensor is missing"):
        convert(source, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model"]


def test_float16_refuses_what_it_cannot_hold(save_model, tmp_path):
    def enlarge(published):
        array = published["model.layers.2.mlp.up_proj.weight"].copy()
        array[3, 4] = -1e5
        published["model.layers.2.mlp.up_proj.weight"] = array

    source = save_model(change=enlarge)
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "out", outtype="f16")
    assert str(caught.value) == (
        f"model.layers.2.mlp.up_proj.weight in {source / 'model.safetensors'} must fit float16, "
        "and it holds -99840.\nConvert to bfloat16 or float32."
    )
    assert not (tmp_path / "out").exists()


def test_cast_rounds_to_nearest_and_keeps_what_was_infinite():
    # Half a step above 1 rounds to even, a little more rounds up.
    halves = np.array([1 + 2**-8, 1 + 2**-8 + 2**-20, -1 - 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(cast(halves, BF16, "x").astype(np.float32), [1.0, 1 + 2**-7, -1 - 2**-6])
    broken = np.array([np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(cast(broken, np.dtype(np.float16), "x"), broken.astype(np.float16))
    same = np.ones(3, np.float32)
    assert cast(same, np.dtype(np.float32), "x") is same


@pytest.fixture
def large(tmp_path, tiny_config) -> Path:
    """A checkpoint of about 100 MB whose largest tensor has 8 MB."""
    config = replace(
        tiny_config, model_dim=1024, ffw_dim=4096, vocab_size=4096, layers=five_local_one_global(4, window=8)
    )
    arrays = {name: np.full(shape, 0.5, BF16) for name, shape in expected_shapes(config).items()}
    save_hf(tmp_path / "large", config, {name: Source("BF16", lambda a=a: a) for name, a in arrays.items()})
    assert sum(array.nbytes for array in arrays.values()) > 100_000_000
    assert max(array.nbytes for array in arrays.values()) == 8 << 20
    return tmp_path / "large"


def test_memory_holds_one_tensor(large, tmp_path):
    """bf16 to f32: the peak is the largest output tensor (16 MB) and a little more."""
    tracemalloc.start()
    try:
        convert(large, tmp_path / "out", outtype="f32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 16 << 20 <= peak < 20 << 20


RESIDENT = """
import re, sys
from pathlib import Path
from gemworks.weights.convert import convert
resident = lambda: 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
seen = [resident()]
convert(sys.argv[1], sys.argv[2], outtype="f32", progress=lambda done, total: seen.append(resident()))
print(max(seen) - seen[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_resident_memory_does_not_grow_with_the_input(large, tmp_path):
    """The pages of the mapped input are let go too."""
    command = [sys.executable, "-c", RESIDENT, str(large), str(tmp_path / "out")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 48 << 20


CONVERT = """
import sys
from gemworks.weights.convert import convert
convert(sys.argv[1], sys.argv[2], outtype="f32", shard_bytes=30_000_000, force=True,
        progress=lambda done, total: print("started", flush=True))
"""


def test_killed_at_any_moment_leaves_no_half_output(large, tmp_path):
    out = tmp_path / "out"
    rng = random.Random(0)
    finished = 0
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", CONVERT, str(large), str(out)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if out.exists():
            assert {entry.dtype for entry in open_checkpoint(out).entries.values()} == {"F32"}, attempt
            finished += 1
    left = [entry for entry in tmp_path.iterdir() if entry.name.endswith(".partial")]
    assert left or finished, "the kill came too late to test anything"
    convert(large, out, outtype="f32", force=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["large", "out"]
