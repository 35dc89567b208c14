"""Converted and quantized models keep their eyes, or it is said that they are lost."""

import json
import shutil

import jax
import numpy as np
import pytest
from seeing_model import EYES, save_seeing_model
from text_model import save_text_model

from gemworks.errors import GemworksWarning
from gemworks.quant.plan import QuantPlan
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.convert import convert
from gemworks.weights.quantize import write_quantized
from gemworks.weights.safetensors import SafetensorsFile
from gemworks.weights.vision import load_vision, vision_config_of


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return save_seeing_model(tmp_path_factory.mktemp("seeing"), layers=(4, 5))


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


@pytest.mark.parametrize("outtype", [None, "float32"])
def test_a_converted_directory_has_both_halves(seeing, tmp_path, outtype):
    (seeing / "preprocessor_config.json").write_text("{}")
    convert(seeing, tmp_path / "out", outtype=outtype)
    assert vision_config_of(tmp_path / "out") == EYES
    assert same(load_vision(tmp_path / "out"), load_vision(seeing))
    with open_checkpoint(seeing) as before, open_checkpoint(tmp_path / "out") as after:
        assert (after.config, after.generation, after.is_chat) == (before.config, before.generation, before.is_chat)
        for name in before.entries:
            assert np.array_equal(np.asarray(after.read(name), np.float32), np.asarray(before.read(name), np.float32))
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_the_files_are_as_the_releases_have_them(seeing, tmp_path):
    """Names of layout A, and a config.json that says what kind of model it is and where images stand."""
    convert(seeing, tmp_path / "out")
    file = SafetensorsFile(tmp_path / "out" / "model.safetensors")
    heads = {name.split(".")[0] for name in file.tensors}
    file.close()
    assert heads == {"language_model", "vision_tower", "multi_modal_projector"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["image_token_index"], config["mm_tokens_per_image"]) == ("gemma3", 767, 4)
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert config["text_config"]["model_type"] == "gemma3_text"


def test_another_kind_of_model_stays_that_kind(seeing, tmp_path):
    guard = shutil.copytree(seeing, tmp_path / "guard")
    config = json.loads((guard / "config.json").read_text())
    config |= {"model_type": "shieldgemma2", "architectures": ["ShieldGemma2ForImageClassification"]}
    config |= {"yes_token_index": 7, "no_token_index": 8}
    (guard / "config.json").write_text(json.dumps(config))
    convert(guard, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [written[key] for key in ("model_type", "yes_token_index", "no_token_index")] == ["shieldgemma2", 7, 8]


def test_a_quantized_directory_has_both_halves(seeing, tmp_path):
    plan = QuantPlan.parse("int4-b32", "int8", [])
    with open_checkpoint(seeing) as checkpoint:
        write_quantized(checkpoint, tmp_path / "out", plan)
    assert vision_config_of(tmp_path / "out") == EYES
    assert same(load_vision(tmp_path / "out"), load_vision(seeing))
    with open_checkpoint(tmp_path / "out") as checkpoint:
        formats = {checkpoint.quantized_format(name) for name in checkpoint.entries}
        assert formats == {"int4-b32", "int8", None}
    with open_checkpoint(tmp_path / "out") as checkpoint:  # once more, from what was written
        write_quantized(checkpoint, tmp_path / "again", plan)
    assert same(load_vision(tmp_path / "again"), load_vision(seeing))


def test_a_gguf_file_says_that_it_lost_its_eyes(seeing, tmp_path):
    with pytest.warns(GemworksWarning, match="holds? the text half alone, and reads no images without an mmproj file"):
        convert(seeing, tmp_path / "out.gguf")
    with open_checkpoint(seeing) as checkpoint, pytest.warns(GemworksWarning, match="will hold the text half alone"):
        write_quantized(checkpoint, tmp_path / "q.gguf", QuantPlan.parse("int4-b32", "int8-b32", []))
    assert vision_config_of(tmp_path / "out.gguf") is None


def test_a_text_model_is_written_as_before(tmp_path):
    text = save_text_model(tmp_path / "text")
    convert(text, tmp_path / "out")
    assert "vision_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    convert(text, tmp_path / "out.gguf")  # warnings are errors
