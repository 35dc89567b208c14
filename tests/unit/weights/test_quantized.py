"""Quantized checkpoints: written as planned, read back with the same codes, refused by name when they are not whole."""

import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest

from gemworks.errors import CheckpointError, ConfigError
from gemworks.ops.weight import FORMATS, QuantWeight, quant_bytes
from gemworks.quant.formats import dequantize
from gemworks.quant.plan import QuantPlan
from gemworks.quant.rtn import quantize
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.convert import convert
from gemworks.weights.gguf_file import GGUFFile
from gemworks.weights.load import load_model
from gemworks.weights.names import is_norm
from gemworks.weights.quantize import exact_model, write_quantized
from gemworks.weights.safetensors import SafetensorsFile

QUANTIZED = [format for format in FORMATS if format != "bf16"]


ROWS = 288


def small_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Control tokens, the bytes and a few letters."""
    rows = [(name, 0.0, 3) for name in ("<pad>", "<eos>", "<bos>")] + [("<unk>", 0.0, 2)]
    rows += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    rows += [(letter, -float(i), 1) for i, letter in enumerate("\u2581helowrdabc")]
    pieces, scores, types = zip(*rows, strict=True)
    return list(pieces), list(scores), list(types)


@pytest.fixture
def source(save_model, weights):
    """The tiny model in bf16 with a tokenizer beside it."""
    weights["embed.weight"] = np.random.default_rng(5).normal(size=(ROWS, 64)).astype(ml_dtypes.bfloat16)
    directory = save_model(config=lambda data: data.update(vocab_size=ROWS))
    Tokenizer.from_vocabulary(*small_vocabulary()).save(directory, chat_template="{{ bos_token }}template")
    return directory


def write(source, out, plan, **more):
    with open_checkpoint(source) as checkpoint:
        write_quantized(checkpoint, out, plan, **more)
    return out


def same(one, other) -> bool:
    return (
        (one.format, one.shape) == (other.format, other.shape)
        and np.asarray(one.codes).tobytes() == np.asarray(other.codes).tobytes()
        and np.asarray(one.scales).tobytes() == np.asarray(other.scales).tobytes()
    )


@pytest.mark.parametrize("format", QUANTIZED)
def test_a_directory_gives_back_the_codes_and_scales(source, weights, tmp_path, format):
    out = write(source, tmp_path / "out", QuantPlan.parse(format, "int8"))
    with open_checkpoint(out) as checkpoint:
        for name, array in weights.items():
            wanted = None if is_norm(name) else "int8" if name == "embed.weight" else format
            assert checkpoint.quantized_format(name) == wanted
            found = checkpoint.read_quantized(name)
            if wanted is None:
                assert found is None and checkpoint.read(name).tobytes() == array.tobytes()
                continue
            rounded = quantize(array, wanted)
            assert same(found, rounded), name
            entry = checkpoint.entries[name]
            assert (entry.dtype, entry.shape) == (wanted, array.shape)
            assert entry.num_bytes == quant_bytes(wanted, *array.shape)
            np.testing.assert_array_equal(checkpoint.read(name), dequantize(rounded))
            checkpoint.release(name)
            assert same(checkpoint.read_quantized(name), rounded)


def test_the_directory_is_laid_out_as_documented(source, tmp_path, tiny_config):
    out = write(source, tmp_path / "out", QuantPlan.parse("int4-b32", "int8", ["layers.0.*=bf16"]))
    names = {entry.name for entry in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    block = json.loads((out / "config.json").read_text())["gemworks_quantization"]
    assert block["version"] == 1 and block["formats"]["model.embed_tokens.weight"] == "int8"
    assert block["formats"]["model.layers.1.mlp.up_proj.weight"] == "int4-b32"
    assert not any(name.startswith("model.layers.0.") for name in block["formats"])
    file = SafetensorsFile(out / "model.safetensors")
    codes = file.tensors["model.layers.1.mlp.up_proj.weight"]
    scales = file.tensors["model.layers.1.mlp.up_proj.weight_scale"]
    assert (codes.dtype, codes.shape) == ("U8", (tiny_config.ffw_dim, tiny_config.model_dim // 2))
    assert (scales.dtype, scales.shape) == ("F16", (tiny_config.ffw_dim, tiny_config.model_dim // 32))
    assert (file.tensors["model.embed_tokens.weight"].dtype, file.tensors["model.embed_tokens.weight_scale"].dtype) == (
        "I8",
        "F32",
    )
    assert file.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    assert all(span.begin % 64 == 0 for span in file.tensors.values() if (span.end - span.begin) % 64 == 0)


def test_shards_hold_the_same(source, weights, tmp_path):
    out = write(source, tmp_path / "out", QuantPlan.parse(), shard_bytes=5_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    with open_checkpoint(out) as checkpoint:
        for name, array in weights.items():
            if not is_norm(name):
                assert same(checkpoint.read_quantized(name), quantize(array, checkpoint.quantized_format(name)))


@pytest.mark.parametrize(("format", "kind"), [("int4-b32", "Q4_0"), ("int8-b32", "Q8_0")])
def test_a_gguf_file_gives_back_the_codes_and_scales(source, weights, tmp_path, format, kind):
    out = write(source, tmp_path / "m.gguf", QuantPlan.parse(format, "int8-b32", ["layers.2.attn.v=bf16"]))
    file = GGUFFile(out)
    assert file.metadata["general.file_type"] == {"Q4_0": 2, "Q8_0": 7}[kind]
    assert (
        file.tensors["blk.0.ffn_up.weight"].kind.name == kind and file.tensors["token_embd.weight"].kind.name == "Q8_0"
    )
    assert file.tensors["blk.2.attn_v.weight"].kind.name == "BF16"
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.chat_template == "{{ bos_token }}template"
        for name, array in weights.items():
            if is_norm(name):
                np.testing.assert_array_equal(checkpoint.read(name), array.astype(np.float32) + 1 - 1)
            elif name == "layers.2.attn.v.weight":
                assert checkpoint.read_quantized(name) is None and checkpoint.read(name).tobytes() == array.tobytes()
            else:
                found = checkpoint.read_quantized(name)
                assert same(found, quantize(array, checkpoint.quantized_format(name))), name
                np.testing.assert_array_equal(checkpoint.read(name), dequantize(found))


def off_the_grid(name, format):
    """Codes that rounding would never give: no block has a code of -8, so rounding them again would change them."""
    rng = np.random.default_rng(len(name))
    weight = quantize(rng.normal(size=SHAPES[name]).astype(np.float32), format)
    if format == "int4-b32":
        weight.codes[...] = weight.codes % 7 + 2 + ((weight.codes >> 4) % 7 + 2 << 4)
    return weight


SHAPES = {}


def test_codes_survive_every_way_between_the_two_forms(source, weights, tmp_path):
    SHAPES.update({name: array.shape for name, array in weights.items()})
    plan = QuantPlan.parse("int4-b32", "int8-b32")
    folder = write(source, tmp_path / "folder", plan, produce=off_the_grid)
    convert(folder, tmp_path / "converted.gguf")
    write(folder, tmp_path / "planned.gguf", plan)
    write(tmp_path / "converted.gguf", tmp_path / "back", plan)
    convert(tmp_path / "planned.gguf", tmp_path / "again.gguf", outtype="q4_0")
    for path in ("folder", "converted.gguf", "planned.gguf", "back", "again.gguf"):
        with open_checkpoint(tmp_path / path) as checkpoint:
            for name in weights:
                if not is_norm(name):
                    format = "int8-b32" if name == "embed.weight" else "int4-b32"
                    assert same(checkpoint.read_quantized(name), off_the_grid(name, format)), (path, name)


@pytest.mark.parametrize("out", ["folder", "m.gguf"])
def test_a_model_for_measuring_has_the_codes_of_the_file(source, weights, tmp_path, out):
    """As a plan would round them on the way in, too; loaded as float32 the same matrices come dequantized."""
    plan = QuantPlan.parse("int4-b32", "int8-b32", ["layers.1.*=bf16"])
    path = write(source, tmp_path / out, plan)
    with open_checkpoint(path) as checkpoint, open_checkpoint(source) as before:
        model, planned = exact_model(checkpoint), exact_model(before, plan)
        floats = load_model(checkpoint, dtype="float32")
    assert jax.tree.structure(model) == jax.tree.structure(planned)
    assert all(map(np.array_equal, jax.tree.leaves(model), jax.tree.leaves(planned)))
    assert model.layers[1].attn.q.weight.dtype == np.dtype(ml_dtypes.bfloat16)
    for found, plain, name in (
        (model.embed.weight, floats.embed.weight, "embed.weight"),
        (model.layers[6].ffw.down.weight, floats.layers[6].ffw.down.weight, "layers.6.ffw.down.weight"),
    ):
        wanted = quantize(weights[name], "int8-b32" if name == "embed.weight" else "int4-b32")
        assert isinstance(found, QuantWeight) and same(found, wanted)
        np.testing.assert_array_equal(plain, dequantize(wanted))


def test_a_quantized_directory_converts_to_floats(source, weights, tmp_path):
    out = write(source, tmp_path / "out", QuantPlan.parse("int8", "int8"))
    convert(out, tmp_path / "floats")
    with open_checkpoint(tmp_path / "floats") as checkpoint:
        assert {entry.dtype for entry in checkpoint.entries.values()} == {"BF16"}
        wanted = dequantize(quantize(weights["embed.weight"], "int8")).astype(ml_dtypes.bfloat16)
        assert checkpoint.read("embed.weight").tobytes() == wanted.tobytes()
    assert "gemworks_quantization" not in json.loads((tmp_path / "floats" / "config.json").read_text())


def test_a_matrix_is_made_once_and_in_the_models_order(source, weights, tmp_path):
    made = []

    def produce(name, format):
        made.append(name)
        return quantize(weights[name], format)

    write(source, tmp_path / "out", QuantPlan.parse(), produce=produce)
    assert made == [name for name in weights if not is_norm(name)]


def test_one_matrix_is_in_memory_at_a_time(save_model, weights, tmp_path):
    rng = np.random.default_rng(0)
    weights["embed.weight"] = rng.normal(size=(60_000, 64)).astype(ml_dtypes.bfloat16)  # 7.7 MB
    source = save_model(config=lambda data: data.update(vocab_size=60_000))
    tracemalloc.start()
    write(source, tmp_path / "out", QuantPlan.parse("int4-b32", "int4-b32"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weights["embed.weight"].nbytes + (4 << 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(version=2), r"gemworks_quantization must be of version 1, got 2\."),
        (lambda b: b.pop("version"), r"must be of version 1, got None\."),
        (lambda b: b.update(formats=[1]), r"must hold formats by tensor, and it does not\."),
        (
            lambda b: b["formats"].update({"model.layers.0.mlp.up_proj.weight": "int3"}),
            r"must give model\.layers\.0\.mlp\.up_proj\.weight one of int4-b32, .*, got int3\.",
        ),
        (
            lambda b: b["formats"].update({"model.layers.0.mlp.up_proj.weight": "int8"}),
            r"up_proj\.weight  has \[160, 32\] U8, wants \[160, 32\] I8 as int8",
        ),
        (
            lambda b: b["formats"].update({"model.norm.weight": "int8"}),
            r"  model\.norm\.weight_scale  is missing",
        ),
        (
            lambda b: b["formats"].update({"model.layers.9.mlp.up_proj.weight": "int8"}),
            r"layers\.9\.mlp\.up_proj\.weight  is listed in config\.json, and not stored",
        ),
        (
            lambda b: b["formats"].pop("model.layers.0.mlp.up_proj.weight"),
            r"unknown  model\.layers\.0\.mlp\.up_proj\.weight_scale",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(source, tmp_path, change, message):
    out = write(source, tmp_path / "out", QuantPlan.parse())
    config = json.loads((out / "config.json").read_text())
    change(config["gemworks_quantization"])
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(out)


def test_a_gguf_file_refuses_formats_it_does_not_have(source, tmp_path):
    with pytest.raises(
        ConfigError, match=r"holds int4-b32, int8-b32, bf16, and the plan asks for int8 \(embed\.weight\)\."
    ):
        write(source, tmp_path / "m.gguf", QuantPlan.parse("int4-b32", "int8"))
    assert not (tmp_path / "m.gguf").exists()


def test_nothing_is_written_where_something_is(source, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"mine")
    plan = QuantPlan.parse("int4-b32", "int8-b32")
    with pytest.raises(ConfigError, match=r"m\.gguf exists already\."):
        write(source, tmp_path / "m.gguf", plan)
    write(source, tmp_path / "m.gguf", plan, force=True)
    with pytest.raises(ConfigError, match=r"must not be the input or a directory around it"):
        write(source, source, plan, force=True)
    with pytest.raises(ConfigError, match=r"must be a directory \(or end in \.gguf\)"):
        write(source, tmp_path / "m.safetensors", plan)


def test_damaged_weights_stop_the_writing(save_model, weights, tmp_path):
    weights["layers.3.ffw.up.weight"][2, 5] = np.nan
    with pytest.raises(ConfigError, match=r"layers\.3\.ffw\.up\.weight must hold finite weights .* \[2, 5\] is nan"):
        write(save_model(), tmp_path / "out", QuantPlan.parse())
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["model"]
