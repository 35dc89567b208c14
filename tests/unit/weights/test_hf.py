"""Opening Hugging Face checkpoints: every layout and form, the files beside, and what is wrong with a directory."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from gemworks.errors import CheckpointError, StorageError
from gemworks.weights import hf
from gemworks.weights.checkpoint import GenerationDefaults, open_checkpoint
from gemworks.weights.names import expected_shapes
from gemworks.weights.safetensors import SafetensorsFile


def refusal(path, error=CheckpointError) -> str:
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    return str(caught.value)


def assert_same(checkpoint, weights):
    assert list(checkpoint.entries) == list(weights)
    for name, array in weights.items():
        found = checkpoint.read(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found.view(np.uint16), array.view(np.uint16), err_msg=name)
        assert bytes(checkpoint.raw(name)) == array.tobytes()


@pytest.mark.parametrize("layout", ["A", "B", "C"])
def test_every_layout_opens_and_is_bit_equal(save_model, weights, tiny_config, layout):
    with open_checkpoint(save_model(layout=layout)) as checkpoint:
        assert checkpoint.format == "safetensors" and checkpoint.config == tiny_config
        assert_same(checkpoint, weights)
        assert checkpoint.num_parameters == sum(array.size for array in weights.values())
        assert checkpoint.num_bytes == 2 * checkpoint.num_parameters
        assert checkpoint.vocabulary() is None


def test_shards_open_by_directory_index_and_any_shard(save_model, weights):
    directory = save_model(shard_bytes=50_000)
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) > 3
    for path in (directory, directory / "model.safetensors.index.json", shards[2], str(directory)):
        with open_checkpoint(path) as checkpoint:
            assert_same(checkpoint, weights)
            assert {entry.file for entry in checkpoint.entries.values()} == set(shards)


def test_a_single_file_opens_by_its_path_whatever_it_is_called(save_model, weights):
    directory = save_model()
    renamed = (directory / "model.safetensors").rename(directory / "gemma.safetensors")
    for path in (directory, renamed):
        with open_checkpoint(path) as checkpoint:
            assert_same(checkpoint, weights)


def test_arrays_are_mapped_and_outlive_the_checkpoint(save_model, weights):
    with open_checkpoint(save_model()) as checkpoint:
        mapped = checkpoint.read("layers.3.ffw.up.weight")
        assert not mapped.flags.owndata and not mapped.flags.writeable
        checkpoint.release("layers.3.ffw.up.weight")
    checkpoint.close()
    np.testing.assert_array_equal(mapped, weights["layers.3.ffw.up.weight"])


def test_the_vision_half_is_skipped_and_not_counted(save_model, weights):
    def add_vision(published):
        published["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(9, np.float32)
        published["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(9, np.float32)

    with open_checkpoint(save_model(layout="A", change=add_vision)) as checkpoint:
        assert_same(checkpoint, weights)
        assert checkpoint.num_parameters == sum(array.size for array in weights.values())


def test_missing_tensors_are_named_as_the_file_would(save_model):
    directory = save_model(layout="A", change=lambda published: published.pop("language_model.model.norm.weight"))
    assert refusal(directory) == (
        f"{directory} (1 file): 1 tensor is missing.\n"
        "  missing  final_norm.scale  [64]  (expected as language_model.model.norm.weight)\n"
        "The checkpoint was saved or fetched in part, or its config is of another model: fetch it again."
    )


def test_a_stored_head_equal_to_the_embedding_is_dropped_and_another_refused(save_model, weights, monkeypatch):
    monkeypatch.setattr(hf, "_COMPARE_BYTES", 1000)  # twelve blocks and a short one; the last bit differs

    def same(published):
        published["lm_head.weight"] = published["model.embed_tokens.weight"]

    def other(published):
        published["lm_head.weight"] = published["model.embed_tokens.weight"].copy()
        published["lm_head.weight"][95, 63] += 1

    with open_checkpoint(save_model(change=same, name="same")) as checkpoint:
        assert_same(checkpoint, weights)
    message = refusal(save_model(change=other, name="other"))
    assert "lm_head.weight differs from model.embed_tokens.weight, but the config ties them" in message


def test_an_untied_head_is_read(save_model, weights):
    head = weights["embed.weight"] * weights["embed.weight"].dtype.type(2)
    directory = save_model(
        change=lambda published: published.update({"lm_head.weight": head}),
        config=lambda data: data.update(tie_word_embeddings=False),
    )
    with open_checkpoint(directory) as checkpoint:
        assert not checkpoint.config.tied_head
        np.testing.assert_array_equal(checkpoint.read("head.weight"), head)


def test_generation_and_chat_are_read_from_beside(save_model):
    directory = save_model()
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.generation == GenerationDefaults()
        assert checkpoint.chat_template is None and checkpoint.is_chat is False
    generation = {"eos_token_id": [1, 106], "do_sample": True, "temperature": 0.5, "top_k": 9, "top_p": 0.9}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.generation == GenerationDefaults(eos_ids=(1, 106), temperature=0.5, top_k=9, top_p=0.9)
        assert checkpoint.is_chat is True


def test_the_chat_template_is_found_in_each_of_its_places(save_model):
    directory = save_model()

    def template():
        with open_checkpoint(directory) as checkpoint:
            return checkpoint.chat_template

    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "one"}))
    assert template() == "one"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert template() == "two"
    (directory / "chat_template.jinja").write_text("three")
    assert template() == "three"


def test_a_missing_shard_is_named_with_its_path(save_model):
    directory = save_model(shard_bytes=50_000)
    gone = sorted(directory.glob("*.safetensors"))[1]
    gone.unlink()
    message = refusal(directory, StorageError)
    assert re.search(rf"must hold the \d+ shards .*, and 1 is missing: {re.escape(str(gone))}\.\n", message)
    assert message.endswith("Fetch the missing files; the others can stay.")


def test_an_index_must_list_what_the_shards_hold(save_model):
    directory = save_model(shard_bytes=50_000)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, last = sorted({*index["weight_map"].values()})[:: len({*index["weight_map"].values()}) - 1]
    moved = next(name for name, file in index["weight_map"].items() if file == first)
    index["weight_map"][moved] = last
    path.write_text(json.dumps(index))
    assert refusal(directory) == (
        f"{path} must list what its {len({*index['weight_map'].values()})} shards hold, and 2 entries differ.\n"
        f"  listed but not there  {moved}  in {last}\n"
        f"  there but not listed  {moved}  in {first}\n"
        "Shards of different saves were mixed: fetch the index and the shards again."
    )


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", 7])
def test_an_index_reaches_only_files_beside_it(save_model, name):
    directory = save_model(shard_bytes=50_000)
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert f"must map tensors to .safetensors files beside it, and it maps model.norm.weight to {name!r}" in refusal(
        directory
    )


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": [1]}])
def test_an_index_without_a_map_is_refused(save_model, content):
    directory = save_model(shard_bytes=50_000)
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))
    assert "must hold a weight_map, and it does not" in refusal(directory)


def test_a_cut_shard_is_named(save_model):
    directory = save_model(shard_bytes=50_000)
    shard = sorted(directory.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert refusal(directory).startswith(f"{shard} must be ")


def test_a_directory_of_both_forms_is_refused_unless_one_is_named(save_model, weights):
    directory = save_model(shard_bytes=50_000)
    single = save_model(name="single") / "model.safetensors"
    (directory / "model.safetensors").write_bytes(single.read_bytes())
    message = refusal(directory)
    assert "it holds model.safetensors and model.safetensors.index.json without it" in message
    with open_checkpoint(directory / "model.safetensors") as checkpoint:
        assert_same(checkpoint, weights)
        assert len({entry.file for entry in checkpoint.entries.values()}) == 1


def test_shards_without_their_index_are_refused(save_model):
    directory = save_model(shard_bytes=50_000)
    (directory / "model.safetensors.index.json").unlink()
    message = refusal(directory)
    assert "must hold model.safetensors or one index of shards, and it holds model-00001-of-" in message
    assert "fetch model.safetensors.index.json too" in message


def test_weights_without_a_config_are_refused(save_model):
    directory = save_model()
    (directory / "config.json").unlink()
    missing = f"{directory} must hold config.json beside the weights, and it does not.\n"
    assert refusal(directory) == missing + "Fetch the model's config.json into the same directory."
    (directory / "adapter_config.json").write_text("{}")
    assert refusal(directory) == missing + "This is a LoRA adapter: merge it into its base model, or load that."


def test_a_llama_checkpoint_is_refused_by_its_name(save_model):
    message = refusal(save_model(config=lambda data: data.update(model_type="llama")))
    assert "This is a Llama checkpoint, and Gemworks runs Gemma 3." in message


def test_paths_that_are_no_checkpoint_say_what_they_are(tmp_path):
    assert refusal(tmp_path / "none", StorageError).endswith("none: there is no such file or directory.")
    assert "and it holds nothing." in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "and it holds notes.txt." in refusal(tmp_path)
    assert "its name says neither" in refusal(tmp_path / "notes.txt")
    (tmp_path / "pytorch_model.bin").write_text("x")
    assert "its weights are pickles, which can run code when opened" in refusal(tmp_path)
    for name in ("a.gguf", "b.gguf", "mmproj-a.gguf"):
        (tmp_path / name).write_text("x")
    assert "and it holds 2 .gguf files: a.gguf, b.gguf." in refusal(tmp_path)


def test_an_unreadable_file_is_a_storage_error(save_model, monkeypatch):
    directory = save_model()
    really_open = Path.open

    def refuse(self, *args, **kwargs):
        if self.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return really_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(directory, StorageError) == f"{directory / 'model.safetensors'} cannot be read: Permission denied."


def test_a_refused_checkpoint_leaves_nothing_open(save_model, monkeypatch):
    opened = []
    really_init = SafetensorsFile.__init__

    def init(self, path):
        really_init(self, path)
        opened.append(self)

    monkeypatch.setattr(SafetensorsFile, "__init__", init)
    refusal(save_model(change=lambda published: published.pop("model.norm.weight")))
    assert [file._map.closed for file in opened] == [True]


def test_the_config_and_the_shapes_belong_together(save_model, tiny_config):
    message = refusal(save_model(config=lambda data: data.update(intermediate_size=192)))
    assert "21 tensors are of another shape" in message
    assert "layers.0.ffw.gate.weight  has [160, 64], wants [192, 64]" in message
    assert len(expected_shapes(tiny_config)) == 93
