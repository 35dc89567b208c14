import gzip
import json
import lzma
import tracemalloc

import pytest

from gemworks.data.readers import Broken, Document, documents, find_files, raw_batches
from gemworks.errors import ConfigError, StorageError


def read(path, **options):
    return [item for batch in raw_batches([path], **options) for item in documents(batch)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_every_compression_gives_the_same_documents(tmp_path, suffix):
    data = "".join(json.dumps({"text": f"caf\u00e9 {i}", "n": i}, ensure_ascii=False) + "\n" for i in range(5)).encode()
    path = tmp_path / f"a.jsonl{suffix}"
    if suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(suffix, bytes)(data))
    assert read(path) == [Document(f"caf\u00e9 {i}", {"n": i}, str(path), i + 1) for i in range(5)]


def test_parquet_rows_are_documents(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", "b"], "lang": ["en", "de"]}), tmp_path / "a.parquet")
    assert [(d.text, d.fields, d.line) for d in read(tmp_path / "a.parquet")] == [
        ("a", {"lang": "en"}, 1),
        ("b", {"lang": "de"}, 2),
    ]


def test_a_text_file_is_one_document_and_a_long_one_is_cut_at_a_blank_line(tmp_path):
    (tmp_path / "short.txt").write_text("one\n\ntwo\n")
    assert [d.text for d in read(tmp_path / "short.txt")] == ["one\n\ntwo\n"]
    block = "x" * 99_999 + "\n\n"
    (tmp_path / "long.txt").write_text(block * 25)
    found = read(tmp_path / "long.txt")
    assert "".join(d.text for d in found) == block * 25
    assert [(len(d.text) // len(block), d.line) for d in found] == [(11, 1), (11, 23), (3, 45)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "a', "not JSON"),
        (b"[1]", "a JSON object is needed, got list"),
        (b'{"texts": "a"}', 'the field "text" must be a string, got no such field'),
        (b'{"text": 3}', 'the field "text" must be a string, got int'),
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b'\n\n{"text": "b"}\n')
    first, broken, last = read(path)
    assert (first.text, last.text, last.line) == ("a", "b", 4)
    assert isinstance(broken, Broken)
    assert str(broken).startswith(f"{path}, line 2: ")
    assert why in broken.why


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_cut_off_file_is_an_error_that_names_it(tmp_path, suffix):
    whole = {".gz": gzip.compress, ".xz": lzma.compress}[suffix](b'{"text": "a"}\n' * 1000)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) - 12])
    with pytest.raises(StorageError, match=rf"{path}: must be a whole {suffix} file, got damage after line \d+"):
        read(path)


def test_batches_do_not_depend_on_what_reads_them(tmp_path, write):
    path = write("a.jsonl", [{"text": "x" * (i % 50)} for i in range(500)])
    batches = list(raw_batches([path, path], batch_bytes=2000))
    assert [b.index for b in batches] == list(range(len(batches)))
    assert sum(len(b.records) for b in batches) == 1000
    assert all(b.num_bytes < 2100 for b in batches)


def test_memory_is_that_of_a_batch_not_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(4000):
            file.write(b'{"text": "' + b"word " * 2000 + b'"}\n')  # 40 MB
    tracemalloc.start()
    assert sum(len(batch.records) for batch in raw_batches([path])) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(ConfigError, match="a directory of sources must hold"):
        find_files([tmp_path / "empty"])
    with pytest.raises(ConfigError, match=r"a\.csv: a source must be"):
        find_files([tmp_path / "a.csv"])
    with pytest.raises(ConfigError, match="no such file"):
        find_files([tmp_path / "none.jsonl"])
    with pytest.raises(ConfigError, match="at least one source"):
        find_files([])
