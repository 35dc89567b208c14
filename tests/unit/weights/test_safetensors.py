"""The container: what is written is read back, mapped where it can be; every damage is one clear error."""

import json
import random
import re
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gemworks.errors import CheckpointError, StorageError
from gemworks.weights.safetensors import ALIGNMENT, SafetensorsFile
from gemworks.weights.safetensors_write import TensorSource, write_file, write_shards

BF16 = ml_dtypes.bfloat16
HEADER_DTYPES = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}


def source(name: str, array: np.ndarray) -> TensorSource:
    return TensorSource(name, HEADER_DTYPES[array.dtype.name], array.shape, lambda: array)


def raw_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file written by hand: `header` is JSON text or what becomes it."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def arrays():
    """One tensor of every kind: aligned and odd sizes, no dimensions, no elements."""
    rng = np.random.default_rng(0)
    return {
        "odd": rng.normal(size=(3, 7)).astype(np.float32),
        "matrix": rng.normal(size=(32, 64)).astype(BF16),
        "half": rng.normal(size=(64,)).astype(np.float16),
        "byte odd": rng.normal(size=(5,)).astype(BF16),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def test_what_is_written_is_read_back_bit_for_bit(tmp_path, arrays):
    path = tmp_path / "a.safetensors"
    write_file(path, [source(name, array) for name, array in arrays.items()])
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        found = file.array(name)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes() == bytes(file.raw(name))


def test_tensors_of_whole_cache_lines_are_mapped_and_others_copied(tmp_path, arrays):
    path = tmp_path / "a.safetensors"
    write_file(path, [source(name, array) for name, array in arrays.items()])
    file = SafetensorsFile(path)
    for name in ("matrix", "half"):
        mapped = file.array(name)
        assert mapped.ctypes.data % ALIGNMENT == 0
        assert not mapped.flags.owndata and not mapped.flags.writeable
    copied = file.array("byte odd")
    assert file.tensors["byte odd"].begin % ALIGNMENT != 0
    assert copied.flags.writeable, "a copy, private to the caller"


def test_arrays_outlive_the_file_object(tmp_path):
    path = tmp_path / "a.safetensors"
    array = np.arange(64, dtype=np.float32)
    write_file(path, [source("a", array)])
    file = SafetensorsFile(path)
    mapped = file.array("a")
    file.close()
    np.testing.assert_array_equal(mapped, array)


def test_a_tensor_can_be_read_again_after_release(tmp_path, arrays):
    path = tmp_path / "a.safetensors"
    write_file(path, [source(name, array) for name, array in arrays.items()])
    file = SafetensorsFile(path)
    before = file.array("matrix").copy()
    for name in arrays:
        file.release(name)
    np.testing.assert_array_equal(file.array("matrix"), before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_release_gives_the_pages_back(tmp_path):
    path = tmp_path / "a.safetensors"
    num_bytes = 32 << 20
    write_file(path, [source("a", np.ones(num_bytes // 4, np.float32))])
    file = SafetensorsFile(path)

    def resident_file_bytes() -> int:
        text = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"RssFile:\s+(\d+)", text)[1])

    base = resident_file_bytes()
    assert file.array("a").sum() == num_bytes // 4
    assert resident_file_bytes() - base > num_bytes * 0.9
    file.release("a")
    assert resident_file_bytes() - base < num_bytes * 0.1


def test_a_file_cut_anywhere_is_one_error(tmp_path, arrays):
    path = tmp_path / "a.safetensors"
    write_file(path, [source(name, array) for name, array in arrays.items()])
    whole = path.read_bytes()
    for cut in sorted(random.Random(0).sample(range(len(whole)), 200)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"a\.safetensors must .*\n.*fetch it again"):
            SafetensorsFile(path)


def test_a_file_with_bytes_after_its_tensors_is_refused(tmp_path):
    path = raw_file(tmp_path / "a.safetensors", {"a": entry()}, bytes(9))
    with pytest.raises(CheckpointError, match=r"must be \d+ bytes long for its tensors, and it has \d+"):
        SafetensorsFile(path)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"a": entry("F31")}, "must give a a dtype of the format, and it has 'F31'"),
        ({"a": entry(dtype=7)}, "must give a a dtype of the format, and it has 7"),
        ({"a": entry(shape=[2.0])}, "must give a a shape of whole numbers, and it has [2.0]"),
        ({"a": entry(shape=[-2, -1])}, "must give a a shape of whole numbers, and it has [-2, -1]"),
        ({"a": entry(shape=[True, 2])}, "must give a a shape of whole numbers, and it has [True, 2]"),
        ({"a": entry(shape=[1] * 33 + [2])}, "must give a a shape of whole numbers"),
        ({"a": entry(shape=[2**63])}, "must give a a shape of whole numbers"),
        ({"a": entry(shape=[GIB, GIB])}, "in 4,611,686,018,427,387,904 bytes, and it has 8"),
        ({"a": entry(offsets=[0])}, "must give a two offsets, and it has [0]"),
        ({"a": entry(offsets=[8, 0])}, "must store a [2] F32 in 8 bytes, and it has -8"),
        ({"a": entry(offsets=[0, 4])}, "must store a [2] F32 in 8 bytes, and it has 4"),
        ({"a": entry("F4", shape=[3], offsets=[0, 1])}, "must store a [3] F4 in 2 bytes, and it has 1"),
        ({"a": entry(offsets=[8, 16])}, "it leaves a hole before a"),
        ({"a": entry(offsets=[GIB, GIB + 8])}, "it leaves a hole before a"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, "it overlaps b"),
        ({"a": entry(), "b": entry(offsets=[0, 8])}, "it overlaps b"),
        ({"a": {**entry(), "strides": [1]}}, "must give a a dtype, a shape and data_offsets"),
        ({"a": [1]}, "must give a a dtype, a shape and data_offsets, and its entry is [1]"),
        ({"__metadata__": {"format": 1}, "a": entry()}, "must hold text in __metadata__"),
        ("[1]", "must begin its header with a brace"),
        ('{"a": 1, "a": 1}', "must name every tensor once, and it lists a twice"),
        ('{"a": ', "must have a header in JSON"),
        ('{"a": "\\ud800', "must have a header in JSON"),
        ('{"a":' + "[" * 100_000, "must have a header in JSON"),
        ('{"a": ' + "9" * 5000 + "}", "must have a header in JSON"),
        ("{}", "must be 10 bytes long for its tensors, and it has 18"),
    ],
)
def test_hostile_headers_are_refused_by_name(tmp_path, header, complaint):
    path = raw_file(tmp_path / "a.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=re.escape(complaint)):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [2**63, 2**40, 100_000_001, 12])
def test_a_header_longer_than_the_file_is_refused_before_it_is_read(tmp_path, length):
    path = raw_file(tmp_path / "a.safetensors", "{}", bytes(8), length=length)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=f"must hold its header of {length:,} bytes"):
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"none\.safetensors cannot be read: No such file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        SafetensorsFile(tmp_path)


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    """Ten tensors of 10 MB are written with a peak of little more than one."""
    one = 10 << 20

    def produce() -> np.ndarray:
        return np.ones(one // 4, np.float32)

    tensors = [TensorSource(f"t{i}", "F32", (one // 4,), produce) for i in range(10)]
    tracemalloc.start()
    try:
        write_file(tmp_path / "a.safetensors", tensors)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * one
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.safetensors").stat().st_size > 10 * one


def test_shards_stay_below_the_limit_and_the_index_lists_them(tmp_path):
    arrays = {f"t{i}": np.full(1000, i, np.float32) for i in range(7)} | {"large": np.zeros(5000, np.float32)}
    seen = []
    tensors = [source(name, array) for name, array in arrays.items()]
    write_shards(tmp_path, tensors, shard_bytes=9000, progress=lambda done, total: seen.append((done, total)))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = sorted({*index["weight_map"].values()})
    assert names == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values()) == 48_000
    assert seen == [*((4000 * i, 48_000) for i in range(1, 8)), (48_000, 48_000)]
    for name, array in arrays.items():
        file = SafetensorsFile(tmp_path / index["weight_map"][name])
        np.testing.assert_array_equal(file.array(name), array)
        data = sum(span.end - span.begin for span in file.tensors.values())
        assert data <= 9000 or len(file.tensors) == 1


def test_done_is_called_after_each_tensor_is_written(tmp_path):
    log = []
    tensors = [
        TensorSource(name, "F32", (1,), lambda n=name: log.append(f"make {n}") or np.ones(1, np.float32),
                     lambda n=name: log.append(f"done {n}"))
        for name in "ab"
    ]  # fmt: skip
    write_file(tmp_path / "a.safetensors", tensors)
    assert log == ["make a", "done a", "make b", "done b"]
