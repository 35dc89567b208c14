"""Packed files: every format comes back bit for bit without a copy, and whatever is wrong with one is noticed."""

import multiprocessing
import os
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from small_models import random_arrays, small_config
from text_model import save_text_model

from gemworks.errors import ConfigError, GemworksWarning
from gemworks.ops import layout
from gemworks.ops.weight import FORMATS, PackedWeight, QuantWeight, code_shapes
from gemworks.quant.plan import QuantPlan
from gemworks.weights import packed_store
from gemworks.weights.blocksums import block_sums
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.convert import convert
from gemworks.weights.load import Loader
from gemworks.weights.packed import PackedFile, PackedSource, write_packed
from gemworks.weights.packed_header import BLOCK_BYTES, PAGE, NotUsable
from gemworks.weights.save import Source, save_hf

PLAN = QuantPlan.parse("int4-b32", "int8")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEMWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMWORKS_PACKED_LIMIT", raising=False)
    return tmp_path / "cache" / "packed"


@pytest.fixture
def model(tmp_path) -> Path:
    return save_model(tmp_path / "model")


def save_model(path: Path, seed: int = 0) -> Path:
    config = small_config(model_dim=64, num_layers=2, vocab_size=160)
    sources = {
        name: Source("BF16", lambda array=array: array.astype(ml_dtypes.bfloat16))
        for name, array in random_arrays(config, seed).items()
    }
    save_hf(path, config, sources, force=True)
    return path


def load(path: Path, plan: QuantPlan | None = PLAN, **more):
    with open_checkpoint(path) as checkpoint:
        return Loader(checkpoint, quant=plan, pack=True).load(**more)


def load_silently(path: Path, **more):
    """Load where any warning is a failure (they are errors in this suite); say so."""
    return load(path, **more)


def load_with_line(path: Path) -> tuple[object, str]:
    """Load, and return the one warning that was given, which must be one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(path)
    ours = [str(w.message) for w in caught if issubclass(w.category, GemworksWarning)]
    assert len(ours) == 1 and "\n" not in ours[0], ours
    return model, ours[0]


def leaves(model) -> list[np.ndarray]:
    """Copies: a test that writes into a mapped file would change what it compares with."""
    return model if isinstance(model, list) else [np.array(leaf) for leaf in jax.tree.leaves(model)]


def assert_same(one, other) -> None:
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def the_file(cache: Path) -> Path:
    [path] = cache.glob("*.packed")
    return path


def random_weight(format, F, D, seed=0) -> QuantWeight:
    rng = np.random.default_rng(seed)
    (code_shape, code_dtype), (scale_shape, scale_dtype) = code_shapes(format, F, D)
    codes = rng.integers(0, 256, (*code_shape, code_dtype.itemsize), np.uint8).view(code_dtype)[..., 0]
    return QuantWeight(codes, rng.random(scale_shape).astype(scale_dtype), format, (F, D))


def test_every_format_comes_back_bit_for_bit_from_aligned_places(tmp_path):
    weights = {format: random_weight(format, 40, 96) for format in FORMATS}
    plain = {
        "float32": np.random.default_rng(1).random(7, np.float32),
        "bfloat16": np.arange(15).reshape(3, 5).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
    }
    packed = {format: layout.pack(weight) for format, weight in weights.items()}
    sources = [
        PackedSource(name=name, kind=name, shape=(40, 96), size=own.size, produce=lambda own=own: own)
        for name, own in packed.items()
    ]
    sources += [
        PackedSource(name=n, kind=a.dtype.name, shape=a.shape, size=a.nbytes, produce=lambda a=a: a)
        for n, a in plain.items()
    ]
    path = tmp_path / "x.packed"
    write_packed(path, sources, layout=layout.LAYOUT_VERSION, source={"path": "here"}, plan="p")
    file = PackedFile(path)
    assert file.damage() is None
    assert all(tensor.offset % PAGE == 0 for tensor in file.tensors.values())
    for format, weight in weights.items():
        read = file.weight(format)
        assert isinstance(read, PackedWeight) and read.shape == (40, 96) and read.format == format
        back = layout.unpack(read)
        np.testing.assert_array_equal(back.codes, weight.codes)
        np.testing.assert_array_equal(back.scales, weight.scales)
    for name, array in plain.items():
        np.testing.assert_array_equal(file.array(name), array)
        assert file.array(name).dtype == array.dtype


def test_arrays_on_the_device_are_the_files_own_pages(model):
    load_silently(model)
    with open_checkpoint(model) as checkpoint:
        loader = Loader(checkpoint, quant=PLAN, pack=True)
        file = loader._opened
        loaded = loader.load()
    assert file is not None
    for name, array in {
        "embed.weight": loaded.embed.weight.data,
        "layers.1.ffw.down.weight": loaded.layers[1].ffw.down.weight.data,
        "final_norm.scale": loaded.final_norm.scale,
    }.items():
        assert array.unsafe_buffer_pointer() == file.array(name).ctypes.data


def test_the_second_start_reads_what_the_first_one_packed(model, cache):
    first = load_silently(model)
    written = the_file(cache).stat()
    second = load_silently(model)
    assert the_file(cache).stat().st_ino == written.st_ino
    assert_same(first, second)
    assert isinstance(second.embed.weight, PackedWeight) and second.embed.weight.format == "int8"
    assert second.layers[0].attn.q.weight.format == "int4-b32"


def test_packed_weights_are_those_of_a_start_that_does_not_pack(model):
    packed = load_silently(model)
    with open_checkpoint(model) as checkpoint:
        rows = Loader(checkpoint, quant=PLAN, pack=False).load()
    assert isinstance(rows.layers[1].ffw.up.weight, QuantWeight)
    back = layout.unpack(packed.layers[1].ffw.up.weight)
    np.testing.assert_array_equal(np.asarray(back.codes), np.asarray(rows.layers[1].ffw.up.weight.codes))
    np.testing.assert_array_equal(np.asarray(back.scales), np.asarray(rows.layers[1].ffw.up.weight.scales))


def test_each_plan_has_a_file_of_its_own(model, cache):
    load_silently(model)
    load_silently(model, plan=QuantPlan.parse("int8", "int8"))
    assert len(list(cache.glob("*.packed"))) == 2


def test_a_changed_model_is_packed_again_with_one_line(model, cache):
    load_silently(model)
    save_model(model, seed=1)
    again, line = load_with_line(model)
    assert str(the_file(cache)) in line and "earlier state" in line
    assert_same(again, load_silently(model))


@pytest.mark.parametrize("place", ["magic", "length", "hash", "header", "header's end", "first", "middle", "last"])
def test_damage_anywhere_is_found_and_mended_with_one_line(model, cache, place):
    whole = leaves(load_silently(model))
    path = the_file(cache)
    data, file = bytearray(path.read_bytes()), PackedFile(path)
    last = max(file.tensors.values(), key=lambda tensor: tensor.offset)
    position = {
        "magic": 3,
        "length": 9,
        "hash": 17,
        "header": 200,
        "header's end": file.header["data"] - 1,
        "first": file.header["data"],
        "middle": len(data) // 2,
        "last": last.offset + last.size - 1,
    }[place]
    data[position] ^= 1
    path.write_bytes(data)
    again, line = load_with_line(model)
    assert line.endswith("it is built again.")
    assert_same(again, whole)
    load_silently(model)


@pytest.mark.parametrize("size", [0, 5, 31, 100, 5000, -1, -BLOCK_BYTES])
def test_a_file_that_was_cut_is_built_again(model, cache, size):
    whole = leaves(load_silently(model))
    path = the_file(cache)
    data = path.read_bytes()
    path.write_bytes(data[:size])
    again, _ = load_with_line(model)
    assert_same(again, whole)


@pytest.mark.parametrize("content", [b"GGUF" + bytes(4000), b"GWPACK\r\n" + bytes(4000), b"\0" * 10_000])
def test_a_foreign_file_of_that_name_is_built_again(model, cache, content):
    whole = leaves(load_silently(model))
    the_file(cache).write_bytes(content)
    again, _ = load_with_line(model)
    assert_same(again, whole)


def test_another_layout_version_is_built_again(model, monkeypatch):
    load_silently(model)
    monkeypatch.setattr(layout, "LAYOUT_VERSION", layout.LAYOUT_VERSION + 1)
    _, line = load_with_line(model)
    assert f"of layout {layout.LAYOUT_VERSION - 1}" in line


def test_two_tensors_exchanged_are_damage(tmp_path):
    """Same bytes at other places: the sums of the two blocks differ although their total does not."""
    one, two = (np.full(BLOCK_BYTES, value, np.uint8) for value in (1, 2))
    path = tmp_path / "x.packed"
    sources = [
        PackedSource(name=str(i), kind="float32", shape=(BLOCK_BYTES // 4,), size=BLOCK_BYTES, produce=lambda a=a: a)
        for i, a in enumerate((one, two))
    ]
    write_packed(path, sources, layout=1, source={"path": "here"}, plan="p")
    start = PackedFile(path).header["data"]
    path.write_bytes(path.read_bytes()[:start] + two.tobytes() + one.tobytes())
    assert "2 of 2 blocks" in (PackedFile(path).damage() or "")


def test_block_sums_are_what_their_definition_says():
    """SplitMix64 multipliers made odd, in plain Python."""
    words = np.random.default_rng(0).integers(0, 2**64, 3 * BLOCK_BYTES // 8, np.uint64)
    state, keys, mask = 0, [], 2**64 - 1
    for _ in range(BLOCK_BYTES // 8):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        keys.append((z ^ (z >> 31)) | 1)
    assert keys[0] == 0xE220A8397B1DCDAF | 1  # the published first output for seed 0
    last = sum(int(w) * k for w, k in zip(words[-len(keys) :], keys, strict=True)) & mask
    assert int(block_sums(words.view(np.uint8))[-1]) == last
    np.testing.assert_array_equal(block_sums(words.view(np.uint8), threads=2), block_sums(words.view(np.uint8)))


def test_interruption_leaves_nothing_behind(model, cache):
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(model, packing=stop)
    assert list(cache.iterdir()) == []
    load_silently(model)


def test_packing_reports_every_byte_once(model):
    seen: list[tuple[int, int]] = []
    load_silently(model, packing=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and all(a[0] < b[0] for a, b in pairwise(seen))
    seen.clear()
    load_silently(model, packing=lambda done, total: seen.append((done, total)))
    assert seen == []


def _load_in_child(path: Path, barrier) -> None:
    barrier.wait()
    load(path)


def test_processes_that_build_at_once_both_end_with_a_good_file(model, cache):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    children = [context.Process(target=_load_in_child, args=(model, barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert PackedFile(the_file(cache)).damage() is None
    assert [path.name for path in cache.iterdir()] == [the_file(cache).name]
    load_silently(model)


def test_a_process_that_waited_for_the_lock_uses_what_the_other_built(model, monkeypatch):
    built = []
    real = write_packed
    monkeypatch.setattr("gemworks.weights.load.write_packed", lambda *a, **k: built.append(1) or real(*a, **k))
    with open_checkpoint(model) as checkpoint:
        late = Loader(checkpoint, quant=PLAN, pack=True)  # sees no file
        load(model)
        late.load()
    assert built == [1]


def test_a_full_disk_is_one_clear_line_and_the_model_runs_from_memory(model, cache, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=1000))
    monkeypatch.setenv("GEMWORKS_PACKED_LIMIT", "1GB")
    in_memory, line = load_with_line(model)
    assert "1,000 bytes free" in line and "in memory" in line
    assert isinstance(in_memory.embed.weight, PackedWeight)
    assert list(cache.glob("*.packed")) == []
    monkeypatch.undo()
    monkeypatch.setenv("GEMWORKS_CACHE", str(cache.parent))
    assert_same(in_memory, load_silently(model))


def test_a_cache_that_cannot_be_written_is_one_clear_line(model, cache):
    cache.parent.mkdir()
    cache.write_text("a file where the directory should be")
    in_memory, line = load_with_line(model)
    assert "in memory" in line
    assert isinstance(in_memory.embed.weight, PackedWeight)


def test_the_files_used_longest_ago_make_room(tmp_path, cache, monkeypatch):
    models = [save_model(tmp_path / f"m{i}", seed=i) for i in range(3)]
    for i, path in enumerate(models[:2]):
        load_silently(path)
        os.utime(packed_store.packed_of(path)[0].path, (1000 + i, 1000 + i))
    size = packed_store.packed_of(models[0])[0].num_bytes
    monkeypatch.setenv("GEMWORKS_PACKED_LIMIT", f"{2.5 * size / 1000}k")
    load_silently(models[0])  # used now, so the second is older
    load_silently(models[2])
    assert [bool(packed_store.packed_of(path)) for path in models] == [True, False, True]


def test_what_exceeds_the_limit_alone_is_not_packed(model, cache, monkeypatch):
    monkeypatch.setenv("GEMWORKS_PACKED_LIMIT", "1k")
    _, line = load_with_line(model)
    assert "exceed the limit" in line
    assert list(cache.glob("*.packed")) == []


def test_a_limit_of_nothing_packs_nothing_and_says_nothing(model, cache, monkeypatch):
    monkeypatch.setenv("GEMWORKS_PACKED_LIMIT", "0")
    assert isinstance(load_silently(model).embed.weight, PackedWeight)
    assert list(cache.glob("*.packed")) == []


def test_a_limit_that_is_no_size_is_refused(model, monkeypatch):
    monkeypatch.setenv("GEMWORKS_PACKED_LIMIT", "much")
    with pytest.raises(ConfigError, match="GEMWORKS_PACKED_LIMIT must be a size such as 20GB"):
        load(model)


def test_a_mapped_file_outlives_its_removal(model, cache):
    load_silently(model)
    loaded = load_silently(model)
    before = leaves(loaded)
    packed_store.remove(packed_store.list_packed())
    assert list(cache.glob("*.packed")) == []
    for a, b in zip(before, leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_list_knows_source_plan_size_and_foreign_files(model, cache):
    load_silently(model)
    (cache / "foreign.packed").write_bytes(b"hello")
    found = {entry.path.name: entry for entry in packed_store.list_packed()}
    assert found["foreign.packed"].source is None
    own = found[next(name for name in found if name.startswith("model-"))]
    assert own.source == model.resolve() and "int4-b32" in (own.plan or "")
    assert own.num_bytes == own.path.stat().st_size


def test_a_truncated_mapping_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.packed"
    path.write_bytes(b"GWPACK\r\n" + (10**6).to_bytes(8, "little") + bytes(16) + b"{}")
    with pytest.raises(NotUsable, match="cut off"):
        PackedFile(path)


@pytest.fixture
def q4_0(tmp_path) -> Path:
    """The model inside the package as a GGUF file in Q4_0."""
    out = tmp_path / "model.gguf"
    convert(save_text_model(tmp_path / "text"), out, outtype="q4_0")
    return out


def test_what_is_stored_quantized_is_packed_as_it_is_stored(q4_0):
    with open_checkpoint(q4_0) as checkpoint:
        stored = checkpoint.read_quantized("layers.0.ffw.up.weight")
        loaded = Loader(checkpoint, pack=True).load()
    assert stored is not None
    packed = loaded.layers[0].ffw.up.weight
    assert isinstance(packed, PackedWeight) and packed.format == "int4-b32"
    back = layout.unpack(packed)
    np.testing.assert_array_equal(np.asarray(back.codes), np.asarray(stored.codes))
    np.testing.assert_array_equal(np.asarray(back.scales), np.asarray(stored.scales))
    assert loaded.final_norm.scale.dtype == np.float32


def test_without_kernels_or_by_dtype_it_is_turned_into_bf16(q4_0, cache):
    with open_checkpoint(q4_0) as checkpoint:
        expected = checkpoint.read("layers.0.ffw.up.weight").astype(ml_dtypes.bfloat16)
        for options in ({"pack": False}, {"pack": True, "dtype": "bfloat16"}):
            weight = Loader(checkpoint, **options).load().layers[0].ffw.up.weight
            np.testing.assert_array_equal(np.asarray(weight), expected)
    assert not cache.exists()
