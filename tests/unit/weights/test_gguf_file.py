"""The GGUF container: everything a file can say, and everything a damaged or hostile one can."""

import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemworks.errors import CheckpointError, StorageError
from gemworks.weights.gguf_file import MAX_ENTRIES, GGUFFile, StringArray

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text


def value(kind: int, content) -> bytes:
    """A value without its type; arrays are (inner type, list)."""
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        inner, items = content
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, item) for item in items)
    return struct.pack("<" + FORMATS[kind], content)


def key(name: str, kind: int, content) -> bytes:
    return string(name) + struct.pack("<I", kind) + value(kind, content)


def tensor(name: str, shape: tuple[int, ...], code: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), code, offset)


def gguf(keys=(), tensors=(), data: bytes = b"", *, version: int = 3, counts=None, alignment: int = 32) -> bytes:
    num_tensors, num_keys = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


@pytest.fixture
def write(tmp_path):
    def write(content: bytes):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def refusal(write):
    """The message a file is refused with."""

    def refusal(content: bytes) -> str:
        with pytest.raises(CheckpointError) as caught:
            GGUFFile(write(content))
        return str(caught.value).replace(str(write(content)), "FILE")

    return refusal


EVERYTHING = [
    key("u8", U8, 255),
    key("i8", I8, -128),
    key("u16", U16, 65535),
    key("i16", I16, -32768),
    key("u32", U32, 2**32 - 1),
    key("i32", I32, -(2**31)),
    key("f32", F32, 1e-6),
    key("bool", BOOL, True),
    key("string", STRING, "gr\u00fc\u00df \U0001f48e"),
    key("u64", U64, 2**64 - 1),
    key("i64", I64, -(2**63)),
    key("f64", F64, 0.1),
    key("numbers", ARRAY, (F32, [0.5, -1.5])),
    key("flags", ARRAY, (BOOL, [True, False, True])),
    key("strings", ARRAY, (STRING, ["a", "", "\u2581\u2581", "<end_of_turn>"])),
    key("nested", ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x"]), (U8, [])])),
    key("empty", ARRAY, (F64, [])),
]
TWO_TENSORS = [tensor("a", (2, 3), 0, 0), tensor("b", (2, 32), 8, 32)]
DATA = bytes(range(24)) + bytes(8) + bytes(range(68))


def test_every_value_type_is_read(write):
    metadata = GGUFFile(write(gguf(EVERYTHING))).metadata
    plain = {name: found for name, found in metadata.items() if not isinstance(found, np.ndarray | StringArray | list)}
    assert plain == {
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31), "f32": 1e-6,
        "bool": True, "string": "gr\u00fc\u00df \U0001f48e", "u64": 2**64 - 1, "i64": -(2**63), "f64": 0.1,
    }  # fmt: skip
    assert metadata["numbers"].tolist() == [0.5, -1.5] and metadata["numbers"].dtype == np.float32
    assert metadata["flags"].tolist() == [True, False, True]
    assert list(metadata["strings"]) == ["a", "", "\u2581\u2581", "<end_of_turn>"]
    first, second, third = metadata["nested"]
    assert first.tolist() == [1, 2] and list(second) == ["x"] and len(third) == 0
    assert len(metadata["empty"]) == 0


def test_tensors_are_where_the_table_says(write):
    file = GGUFFile(write(gguf(EVERYTHING, TWO_TENSORS, DATA)))
    a, b = file.tensors["a"], file.tensors["b"]
    assert (a.shape, a.kind.name, a.num_bytes) == ((2, 3), "F32", 24)
    assert (b.shape, b.kind.name, b.num_bytes) == ((2, 32), "Q8_0", 68)
    assert bytes(file.bytes_of("a")) == DATA[:24] and bytes(file.bytes_of("b")) == DATA[32:]


def test_version_2_reads_like_version_3(write):
    assert GGUFFile(write(gguf(EVERYTHING, TWO_TENSORS, DATA, version=2))).tensors["b"].shape == (2, 32)


def test_another_alignment_moves_the_data(write):
    keys = [key("general.alignment", U32, 128)]
    file = GGUFFile(write(gguf(keys, [tensor("a", (2, 3), 0, 128)], bytes(128) + DATA, alignment=128)))
    assert bytes(file.bytes_of("a")) == DATA[:24] and file.tensors["a"].offset % 128 == 0


def test_views_outlive_the_file(write):
    file = GGUFFile(write(gguf(EVERYTHING, TWO_TENSORS, DATA)))
    stored, strings = file.bytes_of("a"), file.metadata["strings"]
    file.release("a")
    file.close()
    file.close()
    assert bytes(stored) == DATA[:24] and strings[3] == "<end_of_turn>"


def test_a_string_is_found_by_its_bytes(write):
    """Only whole strings count, not the same bytes inside a longer one."""
    inner = (struct.pack("<Q", 1) + b"b").decode()
    strings = GGUFFile(write(gguf([key("s", ARRAY, (STRING, ["ab", inner, "x", "", "b"]))]))).metadata["s"]
    assert [strings.find(text) for text in ("b", "", "ab", "abc", inner)] == [4, 3, 0, None, 1]
    assert list(strings[2:4]) == ["x", ""] and len(strings[:0]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "FILE: must begin with the four bytes GGUF, and has 0."),
        (b"PK\x03\x04" + bytes(40), "FILE: must begin with the four bytes GGUF, got b'PK\\x03\\x04'."),
        (gguf(version=1), "FILE: GGUF version 1 is not read, only 2 and 3."),
        (gguf(version=3 << 24), "FILE: is big-endian, and only little-endian GGUF is read."),
        (gguf(version=4), "FILE: GGUF version 4 is not known, only 2 and 3."),
        (gguf(counts=(2**63, 0)), "FILE: 9,223,372,036,854,775,808 tensors cannot be in a file of 32 bytes."),
        (gguf(counts=(0, 3)), "FILE: 3 keys cannot be in a file of 32 bytes."),
        (gguf([key("k", U32, 1)] * 2), "FILE: key 'k' is there twice."),
        (gguf([key("", U32, 1)]), "FILE: key 0 has no name."),
        (gguf([string("k") + struct.pack("<I", 13) + bytes(8)]), "FILE: k has value type 13; types are 0 to 12."),
        (
            gguf([string("k") + struct.pack("<IB", BOOL, 2)]),
            "FILE: k must be true (1) or false (0), got 2.",
        ),
        (gguf([key("k", STRING, b"\xff")]), "FILE: k must be UTF-8, and invalid start byte."),
        (gguf([key("general.alignment", U32, 24)]), "FILE: general.alignment must be a power of two, got 24."),
        (gguf([key("general.alignment", STRING, "32")]), "FILE: general.alignment must be a power of two, got '32'."),
        (gguf([], [tensor("t", (3, 31), 8, 0)]), "FILE: tensor t [3, 31] must have whole blocks of 32 (Q8_0)."),
        (gguf([], [tensor("t", (0, 32), 8, 0)]), "FILE: tensor t [0, 32] must have whole blocks of 32 (Q8_0)."),
        (gguf([], [tensor("t", (4,) * 5, 0, 0)]), "FILE: tensor t must have 1 to 4 dimensions, got 5."),
        (
            gguf([], [tensor("t", (4,), 0, 8)], bytes(99)),
            "FILE: tensor t must begin at a multiple of 32, got offset 8.",
        ),
        (gguf([], [tensor("t", (4,), 0, 0)] * 2, bytes(99)), "FILE: tensor t is there twice."),
        (
            gguf([], [tensor("t", (16,), 0, 0), tensor("u", (4,), 0, 32)], bytes(99)),
            "FILE: tensors t and u overlap.",
        ),
        (
            gguf([], [tensor("t", (256,), 11, 0)], bytes(999)),
            "FILE: tensor t is stored as Q3_K (type 11), which is not read.\n"
            "Readable are F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16.",
        ),
        (
            gguf([], [tensor("t", (2**62, 2**62), 0, 0)]),
            f"FILE: tensor t [{2**62}, {2**62}] F32 needs {2**126:,} bytes at offset 96, and the file has 96 bytes.",
        ),
    ],
)
def test_refusals_name_the_place(refusal, content, message):
    assert refusal(content).startswith(message)


def test_nesting_is_bounded(refusal):
    deep = (U8, [1])
    for _ in range(50):
        deep = (ARRAY, [deep])
    assert "FILE: k nests arrays 5 deep and 5 in number." in refusal(gguf([key("k", ARRAY, deep)]))
    wide = (ARRAY, [(U8, [])] * 2000)
    assert "FILE: k nests arrays 1 deep and 2,000 in number." in refusal(gguf([key("k", ARRAY, wide)]))


def test_text_of_an_array_is_checked_when_it_is_asked_for(write):
    strings = GGUFFile(write(gguf([key("pieces", ARRAY, (STRING, ["fine", b"\xc3"]))]))).metadata["pieces"]
    assert strings[0] == "fine"
    with pytest.raises(CheckpointError, match=r"pieces\[1\] must be UTF-8, and unexpected end of data\."):
        strings[1]


def test_unreadable_files(tmp_path):
    with pytest.raises(StorageError, match="cannot be read: No such file or directory"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        GGUFFile(tmp_path)


def test_cut_anywhere_is_one_error(tmp_path):
    """Cut at 200 random places: always one CheckpointError that names the file."""
    whole = gguf([*EVERYTHING, key("tokens", ARRAY, (STRING, ["piece"] * 500))], TWO_TENSORS, DATA)
    path = tmp_path / "cut.gguf"
    places = sorted(random.Random(3).sample(range(len(whole)), 200))
    for place in places:
        path.write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match=r"cut\.gguf: .*\n.*fetch it again"):
            GGUFFile(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_file_or_one_error(tmp_path, flips):
    """Whatever is flipped, opening ends in a readable file or a CheckpointError."""
    content = bytearray(gguf(EVERYTHING, TWO_TENSORS, DATA))
    for place, mask in flips:
        content[place % len(content)] ^= mask
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    try:
        file = GGUFFile(path)
    except CheckpointError:
        return
    assert sum(info.num_bytes for info in file.tensors.values()) <= len(content)
    for name in file.tensors:
        bytes(file.bytes_of(name))


HUGE = 2**40
HOSTILE = {
    "a string": string("k") + struct.pack("<IQ", STRING, HUGE),
    "a string a little longer than the file": string("k") + struct.pack("<IQ", STRING, (1 << 20) + 64),
    "an array of numbers": string("k") + struct.pack("<IIQ", ARRAY, U8, HUGE),
    "an array of strings": string("k") + struct.pack("<IIQ", ARRAY, STRING, HUGE),
    "an array of arrays": string("k") + struct.pack("<IIQ", ARRAY, ARRAY, HUGE),
    "an array that overflows 64 bits": string("k") + struct.pack("<IIQ", ARRAY, U64, 2**61 + 1),
    "a key": struct.pack("<Q", HUGE),
    "a string in an array": string("k") + struct.pack("<IIQQ", ARRAY, STRING, 3, 2**64 - 1),
}


def peak_of_opening(path) -> int:
    tracemalloc.start()
    try:
        GGUFFile(path)
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_giant_sizes_allocate_nothing(write, refusal, what):
    """A size is compared with the file before anything of that size is made: 64 KiB of Python is all it costs."""
    content = gguf([HOSTILE[what]]) + bytes(1 << 20)
    assert refusal(content).startswith("FILE: k")
    assert peak_of_opening(write(content)) < 1 << 16


@pytest.mark.parametrize("counts", [(2**63, 0), (0, 2**63), (MAX_ENTRIES + 1, 0), (0, MAX_ENTRIES + 1)])
def test_giant_counts_allocate_nothing(write, refusal, counts):
    content = gguf(counts=counts) + bytes(1 << 20)
    assert "cannot be in a file of" in refusal(content)
    assert peak_of_opening(write(content)) < 1 << 16


def test_many_small_strings_cost_less_than_the_file(write):
    """Python strings of two letters take five times their bytes, so they are not made before they are asked for."""
    path = write(gguf([key("k", ARRAY, (STRING, ["ab"] * 100_000))]))
    assert peak_of_opening(path) < path.stat().st_size + (1 << 16)
