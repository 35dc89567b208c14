"""GGUF files written from a checkpoint in memory and read back."""

import errno
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemworks.errors import CheckpointError, ConfigError, StorageError
from gemworks.model.config import TextConfig, five_local_one_global
from gemworks.weights.checkpoint import Checkpoint, GenerationDefaults, TensorEntry, Vocabulary, open_checkpoint
from gemworks.weights.gguf_blocks import dequantize
from gemworks.weights.gguf_file import GGUFFile
from gemworks.weights.gguf_write import FILE_TYPES, fit_vocabulary, write_gguf
from gemworks.weights.names import expected_shapes, is_norm

CONFIG = TextConfig(
    vocab_size=40,
    model_dim=64,
    ffw_dim=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    query_scale=32**-0.5,
    layers=five_local_one_global(7, window=16),
    max_positions=256,
)
WORDS = Vocabulary(
    ["<pad>", "<eos>", b"<bos>", "<unk>", "<end_of_turn>", "\u2581a", "<0x0A>"],
    [0.0, 0.0, 0.0, 0.0, 0.0, -1.5, 0.0],
    [3, 3, 3, 2, 3, 1, 6],
)
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class InMemory(Checkpoint):
    """A checkpoint as safetensors would give it, random but the same each time."""

    format = "safetensors"

    def __init__(self, config: TextConfig = CONFIG, dtype: str = "BF16", generation: GenerationDefaults | None = None):
        self.path = Path("memory")
        self.config = config
        self.generation = generation or GenerationDefaults()
        self.chat_template = None
        self.is_chat = None
        rng = np.random.default_rng(0)
        self.arrays = {
            name: rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])
            for name, shape in expected_shapes(config).items()
        }
        self.entries = {
            name: TensorEntry(
                name=name, published=f"hf.{name}", shape=a.shape, dtype=dtype, num_bytes=a.nbytes, file=self.path
            )
            for name, a in self.arrays.items()
        }

    def read(self, name):
        return self.arrays[name]

    def raw(self, name):
        return memoryview(self.arrays[name].reshape(-1).view(np.uint8))

    def release(self, name):
        pass

    def vocabulary(self):
        return None

    def close(self):
        pass


@pytest.fixture
def out(tmp_path):
    return tmp_path / "model.gguf"


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_floats_come_back_bit_for_bit(out, dtype):
    """bf16 -> bf16 GGUF -> the same bits; so for f16 and f32. Norms come back as float32 within the added 1."""
    source = InMemory(dtype=dtype)
    write_gguf(source, WORDS, out, dtype.lower())
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.config == CONFIG and list(checkpoint.entries) == list(source.entries)
        for name, array in source.arrays.items():
            found = checkpoint.read(name)
            if is_norm(name):
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, array.astype(np.float32), atol=2**-22)
            else:
                assert same_bits(found, array), name


def test_norms_are_stored_as_gain(out):
    """Readers of GGUF multiply by the stored number: 1 + scale. Trap 1 of the spec."""
    source = InMemory()
    write_gguf(source, WORDS, out, "bf16")
    file = GGUFFile(out)
    info = file.tensors["blk.0.attn_norm.weight"]
    stored = dequantize(file.bytes_of(info.name), "F32", info.shape)
    assert info.kind.name == "F32"
    assert (stored == source.arrays["layers.0.attn_pre_norm.scale"].astype(np.float32) + 1).all()


EXPECTED_TYPES = {"f32": ("F32", "F32"), "q8_0": ("Q8_0", "Q8_0"), "q4_0": ("Q8_0", "Q4_0")}


@pytest.mark.parametrize("outtype", sorted(EXPECTED_TYPES))
def test_types_follow_the_table(out, outtype):
    write_gguf(InMemory(), WORDS, out, outtype)
    embed, matrix = EXPECTED_TYPES[outtype]
    entries = open_checkpoint(out).entries
    assert entries["embed.weight"].dtype == embed
    assert {entry.dtype for name, entry in entries.items() if name.endswith(("q.weight", "down.weight"))} == {matrix}
    assert {entry.dtype for name, entry in entries.items() if is_norm(name)} == {"F32"}


def test_pure_quantizes_the_embedding_too(out):
    write_gguf(InMemory(), WORDS, out, "q4_0", pure=True)
    assert {entry.dtype for name, entry in open_checkpoint(out).entries.items() if not is_norm(name)} == {"Q4_0"}


def test_rows_that_are_no_whole_blocks_stay_floats(out):
    write_gguf(InMemory(replace(CONFIG, ffw_dim=80)), WORDS, out, "q4_0")
    entries = open_checkpoint(out).entries
    assert entries["layers.0.ffw.down.weight"].dtype == "F16" and entries["layers.0.ffw.up.weight"].dtype == "Q4_0"


@pytest.mark.parametrize("outtype", sorted(FILE_TYPES))
def test_rewriting_in_the_same_type_copies_every_bit(tmp_path, outtype):
    """GGUF -> GGUF of the same type: the data of both files is equal, norms and blocks included."""
    first, second = tmp_path / "first.gguf", tmp_path / "first2.gguf"
    write_gguf(InMemory(dtype="F32"), WORDS, first, outtype)
    with open_checkpoint(first) as checkpoint:
        write_gguf(checkpoint, checkpoint.vocabulary(), second, outtype)
    a, b = GGUFFile(first), GGUFFile(second)
    assert list(a.tensors) == list(b.tensors)
    assert all(a.bytes_of(name) == b.bytes_of(name) for name in a.tensors)


def test_a_small_gain_is_copied_too(tmp_path):
    """0.1 has bits that 0.1 - 1 + 1 loses: norms of another writer's file must not pass through our convention."""
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    write_gguf(InMemory(), WORDS, first, "bf16")
    info = GGUFFile(first).tensors["output_norm.weight"]
    content = bytearray(first.read_bytes())
    gain = np.full(64, 0.1, np.float32)
    content[info.offset : info.offset + info.num_bytes] = gain.tobytes()
    first.write_bytes(content)
    with open_checkpoint(first) as checkpoint:
        assert (checkpoint.read("final_norm.scale") + np.float32(1) != gain).all()
        write_gguf(checkpoint, WORDS, second, "bf16")
    assert bytes(GGUFFile(second).bytes_of("output_norm.weight")) == gain.tobytes()


def test_quantized_weights_are_near(out):
    """Half a step of the block's largest magnitude: 1/127 of it in Q8_0 and 1/8 in Q4_0, twice over for rounded d."""
    source = InMemory(dtype="F32")
    for outtype, step in (("q8_0", 1 / 127), ("q4_0", 1 / 8)):
        write_gguf(source, WORDS, out, outtype, force=True)
        weights = source.arrays["layers.3.ffw.down.weight"].reshape(-1, 32)
        found = open_checkpoint(out).read("layers.3.ffw.down.weight").reshape(-1, 32)
        assert (np.abs(found - weights) <= 1.001 * step * np.abs(weights).max(axis=1, keepdims=True)).all()


def test_tensor_data_is_aligned_and_mapped(out):
    """Float tensors of our own files are used where they lie; those on other boundaries are copied."""
    write_gguf(InMemory(dtype="F32"), WORDS, out, "f32")
    checkpoint = open_checkpoint(out)
    array = checkpoint.read("embed.weight")
    assert not array.flags.owndata and not array.flags.writeable and array.ctypes.data % 64 == 0
    checkpoint.release("embed.weight")
    checkpoint.close()
    assert same_bits(array, InMemory(dtype="F32").arrays["embed.weight"])


def test_the_vocabulary_is_padded_to_the_rows(out):
    write_gguf(InMemory(), WORDS, out, "f16", chat_template="{{ bos_token }}")
    checkpoint = open_checkpoint(out)
    pieces, scores, types = checkpoint.vocabulary()
    assert pieces[:7] == ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>", "\u2581a", "<0x0A>"]
    assert pieces[7:] == [f"[PAD{row}]" for row in range(7, 40)]
    assert scores[:7] == WORDS.scores and types == [*WORDS.types, *[5] * 33]
    assert checkpoint.chat_template == "{{ bos_token }}" and checkpoint.is_chat is True


def test_pieces_without_rows_are_dropped_only_if_no_text_makes_them():
    assert fit_vocabulary(Vocabulary(["a", "<image_soft_token>"], [0, 0], [1, 3]), 1) == (["a"], [0], [1])
    with pytest.raises(CheckpointError) as caught:
        fit_vocabulary(Vocabulary(["a", "b"], [0, 0], [1, 1]), 1)
    assert str(caught.value) == (
        "the tokenizer has 2 pieces, and the model has 1 embedding rows.\n"
        "They are of different models: take both from the same release."
    )


def test_a_file_without_a_tokenizer(out):
    write_gguf(InMemory(), None, out, "f16")
    assert open_checkpoint(out).vocabulary() is None


def test_generation_defaults_survive(out):
    generation = GenerationDefaults(eos_ids=(1, 4, 9), bos_id=2, pad_id=0, temperature=0.7, top_k=40, top_p=0.9)
    write_gguf(InMemory(generation=generation), WORDS, out, "f16")
    assert open_checkpoint(out).generation == generation


def test_a_chat_file_also_stops_at_end_of_turn(out):
    """Google's files name <eos> alone; the template is what says that <end_of_turn> ends an answer."""
    write_gguf(InMemory(), WORDS, out, "f16", chat_template="x")
    assert open_checkpoint(out).generation.eos_ids == (1, 4)
    write_gguf(InMemory(), WORDS, out, "f16", force=True)
    assert open_checkpoint(out).generation.eos_ids == (1,)


def change_metadata(path: Path, old: bytes, new: bytes) -> None:
    """Overwrite bytes of the same length in the file's head."""
    content = path.read_bytes()
    assert len(old) == len(new) and content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_another_kind_of_vocabulary_is_refused_when_asked_for(out):
    write_gguf(InMemory(), WORDS, out, "f16")
    change_metadata(out, b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gpt-2")
    checkpoint = open_checkpoint(out)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.vocabulary()
    assert str(caught.value) == (
        f"{out}: tokenizer.ggml.model must be llama (SentencePiece), got 'gpt-2'.\n"
        "Use a GGUF converted from the release's tokenizer.model."
    )


def test_missing_scores_are_named(out):
    write_gguf(InMemory(), WORDS, out, "f16")
    change_metadata(out, b"tokenizer.ggml.scores", b"tokenizer.ggml.sc0res")
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.ggml\.scores must be an array of 40 numbers like tokens, got none\."
    ):
        open_checkpoint(out).vocabulary()


def test_a_missing_tensor_is_named(out):
    write_gguf(InMemory(), WORDS, out, "f16")
    change_metadata(out, b"blk.6.attn_q.weight", b"blk.9.attn_q.weight")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(out)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{out} (1 file): 1 tensor is missing and 1 is unknown."
    assert "layers.6.attn.q.weight  [128, 64]  (expected as blk.6.attn_q.weight)" in lines[1]
    assert "blk.9.attn_q.weight  [128, 64] F16" in lines[2]


def test_a_head_stored_twice_is_the_embedding(out):
    """Some converters write output.weight although it is token_embd.weight again: read once, the model is tied."""
    source = InMemory(replace(CONFIG, tied_head=False), "F16")
    source.arrays["head.weight"] = source.arrays["embed.weight"]
    write_gguf(source, WORDS, out, "f16")
    checkpoint = open_checkpoint(out)
    assert checkpoint.config.tied_head and "head.weight" not in checkpoint.entries


def test_a_head_of_its_own_is_read(out):
    source = InMemory(replace(CONFIG, tied_head=False), "F16")
    write_gguf(source, WORDS, out, "f16")
    checkpoint = open_checkpoint(out)
    assert not checkpoint.config.tied_head
    assert same_bits(checkpoint.read("head.weight"), source.arrays["head.weight"])


def test_unknown_outtype():
    with pytest.raises(ConfigError, match=r"outtype must be one of f32, f16, q4_0, q8_0, bf16, got 'q4_k'\."):
        write_gguf(InMemory(), WORDS, Path("never.gguf"), "q4_k")


@pytest.mark.parametrize(
    ("value", "outtype", "kind"), [(np.nan, "q8_0", "Q8_0"), (1e5, "f16", "F16"), (np.inf, "q4_0", "Q4_0")]
)
def test_weights_the_type_cannot_hold_are_named(out, value, outtype, kind):
    source = InMemory(dtype="F32")
    source.arrays["layers.2.attn.q.weight"][3, 5] = value
    with pytest.raises(CheckpointError) as caught:
        write_gguf(source, WORDS, out, outtype)
    assert "memory: hf.layers.2.attn.q.weight must be at most" in str(caught.value)
    assert f"to be stored as {kind}, and it holds {np.float32(value)}." in str(caught.value)
    assert list(out.parent.iterdir()) == []


def test_nothing_is_left_where_writing_fails(out, monkeypatch):
    """A disk that fills up half way: one StorageError, no file and no partial file."""
    source = InMemory()
    read = source.read

    def failing(name):
        if name == "layers.4.ffw.up.weight":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return read(name)

    monkeypatch.setattr(source, "read", failing)
    with pytest.raises(StorageError, match=r"model\.gguf needs [0-9,]+ bytes, and its disk has"):
        write_gguf(source, WORDS, out, "q8_0")
    assert list(out.parent.iterdir()) == []


def test_an_existing_file_needs_force(out):
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        write_gguf(InMemory(), WORDS, out, "f16")
    assert out.read_bytes() == b"precious"
    write_gguf(InMemory(), WORDS, out, "f16", force=True)
    assert open_checkpoint(out).config == CONFIG


def test_progress_ends_at_the_total(out):
    steps = []
    write_gguf(InMemory(), WORDS, out, "q4_0", progress=lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert len(steps) == len(InMemory().entries) and steps[-1][0] == steps[-1][1]
    assert len({total for _, total in steps}) == 1


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    """Q4_0 -> Q8_0 decodes tensor by tensor: the peak is the largest tensor in float32 and a few MiB, not the model."""
    big = replace(CONFIG, model_dim=1024, ffw_dim=4096)
    write_gguf(InMemory(big), WORDS, tmp_path / "a.gguf", "q4_0")
    with open_checkpoint(tmp_path / "a.gguf") as checkpoint:
        tracemalloc.start()
        write_gguf(checkpoint, WORDS, tmp_path / "b.gguf", "q8_0")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        whole = 4 * checkpoint.num_parameters
    assert peak < 4 * 1024 * 4096 + 12 * 2**20 < whole / 4


def test_cut_anywhere_is_refused(out):
    """A whole model file cut at 200 random places: in the tables or in the data, one CheckpointError."""
    write_gguf(InMemory(), WORDS, out, "q4_0")
    whole = out.read_bytes()
    cut = out.with_name("cut.gguf")
    rng = np.random.default_rng(7)
    for place in rng.integers(0, len(whole) - 64, 200):
        cut.write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match=r"cut\.gguf: "):
            open_checkpoint(cut)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "whole.gguf"
    generation = GenerationDefaults(eos_ids=(1, 4, 9))
    write_gguf(InMemory(generation=generation), WORDS, path, "q8_0", chat_template="x")
    return path


@settings(max_examples=400, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3))
def test_flipped_bytes_give_a_model_or_one_error(small_file, flips):
    """Metadata and tables with flipped bytes either still describe a Gemma 3, which reads, or are a CheckpointError."""
    content = bytearray(small_file.read_bytes())
    head = min(info.offset for info in GGUFFile(small_file).tensors.values())
    for place, mask in flips:
        content[place % head] ^= mask
    flipped = small_file.with_name("flipped.gguf")
    flipped.write_bytes(content)
    try:
        with open_checkpoint(flipped) as checkpoint:
            checkpoint.vocabulary()
            assert {name: checkpoint.read(name).shape for name in checkpoint.entries} == expected_shapes(
                checkpoint.config
            )
    except CheckpointError as error:
        assert "flipped.gguf" in str(error)
