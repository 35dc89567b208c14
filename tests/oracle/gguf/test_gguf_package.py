"""Whole files against the gguf package: it reads what we write, and we read what it writes."""

import numpy as np
import pytest

from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.gguf_file import GGUFFile
from gemworks.weights.gguf_write import FILE_TYPES, write_gguf

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")


@pytest.mark.parametrize("outtype", sorted(FILE_TYPES))
def test_the_package_reads_our_files(random_gemma, vocabulary, tmp_path, outtype):
    _, directory = random_gemma("4b")
    with open_checkpoint(directory) as checkpoint:
        write_gguf(checkpoint, vocabulary, tmp_path / "m.gguf", outtype, chat_template="{{ messages }}")
    ours = GGUFFile(tmp_path / "m.gguf")
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert fields.keys() == ours.metadata.keys()
    for key, value in fields.items():
        found = ours.metadata[key]
        assert list(found) == value if isinstance(value, list) else found == pytest.approx(value), key
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist())) and info.kind.name == tensor.tensor_type.name
        assert bytes(ours.bytes_of(tensor.name)) == tensor.data.tobytes(), tensor.name


@pytest.mark.parametrize("little_endian", [True, False])
def test_we_read_files_of_the_package(tmp_path, little_endian):
    """All value types and several tensor types; its big-endian files are refused by name."""
    from gemworks.errors import CheckpointError

    path = tmp_path / "theirs.gguf"
    endianess = gguf.GGUFEndian.LITTLE if little_endian else gguf.GGUFEndian.BIG
    writer = gguf.GGUFWriter(path, "gemma3", endianess=endianess)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8, 256)).astype(np.float32)
    writer.add_uint8("a.u8", 7)
    writer.add_int64("a.i64", -(2**40))
    writer.add_float64("a.f64", 1 / 3)
    writer.add_bool("a.bool", False)
    writer.add_string("a.text", "\u2581\u00fc")
    writer.add_array("a.strings", ["x", "", "yz"])
    writer.add_array("a.floats", [0.5, 1.5])
    writer.add_tensor("f16", matrix.astype(np.float16))
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not little_endian:
        with pytest.raises(CheckpointError, match="is big-endian, and only little-endian GGUF is read"):
            GGUFFile(path)
        return
    file = GGUFFile(path)
    assert [file.metadata[f"a.{key}"] for key in ("u8", "i64", "f64", "bool", "text")] == [
        7, -(2**40), 1 / 3, False, "\u2581\u00fc"
    ]  # fmt: skip
    assert list(file.metadata["a.strings"]) == ["x", "", "yz"] and file.metadata["a.floats"].tolist() == [0.5, 1.5]
    for tensor in gguf.GGUFReader(path).tensors:
        assert bytes(file.bytes_of(tensor.name)) == tensor.data.tobytes(), tensor.name
        assert file.tensors[tensor.name].shape == (8, 256)
