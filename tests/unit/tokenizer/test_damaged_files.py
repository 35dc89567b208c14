"""Each damaged file is one CheckpointError that names the file, what was required and what came."""

import json
import random

import pytest

from gemworks.errors import CheckpointError
from gemworks.tokenizer import Tokenizer

OTHER_MODEL = "The file is likely the tokenizer of another model."
CUT_OFF = "The file is cut off or something else; fetch it again."


@pytest.fixture(scope="module")
def json_text(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    small.save(directory)
    return (directory / "tokenizer.json").read_text()


@pytest.fixture
def refusal(tmp_path):
    """A function that loads a file of these bytes and returns the error's text without the file's name."""

    def load(data, name="tokenizer.json"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            Tokenizer.load(path)
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value).removeprefix(f"{path}: ")

    return load


def edited(text, edit):
    whole = json.loads(text)
    edit(whole)
    return json.dumps(whole).encode()


def test_a_truncated_json_is_refused_wherever_it_is_cut(refusal, json_text):
    data = json_text.encode()
    rng = random.Random(0)
    for size in [0, 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(100))]:
        text = refusal(data[:size])
        assert text.startswith(f"a tokenizer must be a whole tokenizer.json, got {size} bytes with ")
        assert text.endswith(f".\n{CUT_OFF}")


def test_changed_bytes_are_refused_or_still_a_tokenizer(tmp_path, json_text):
    """No byte, wherever it is changed, makes anything but a CheckpointError or a tokenizer that works."""
    rng, refused = random.Random(1), 0
    path = tmp_path / "tokenizer.json"
    for _ in range(300):
        data = bytearray(json_text.encode())
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789"[]{},:x\xff')
        path.write_bytes(data)
        try:
            loaded = Tokenizer.load(path)
            assert loaded.decode(loaded.encode("hello world")) == "hello world"
        except CheckpointError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("edit", "came"),
    [
        (lambda j: j["model"].update(byte_fallback=False), "BPE without byte fallback"),
        (lambda j: j["model"].update(dropout=0.5), "random merges (dropout 0.5)"),
        (lambda j: j.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "a WordLevel model"),
        (
            lambda j: j.update(pre_tokenizer={"type": "Digits", "individual_digits": True}),
            "a splitter of words (Digits)",
        ),
        (lambda j: j.update(pre_tokenizer={"type": "WhitespaceSplit"}), "a splitter of words (WhitespaceSplit)"),
        (lambda j: j.update(normalizer=None), "a normaliser that makes ' a1  \uff21\\n?b' of ' a1  \uff21\\n?b'"),
        (lambda j: j["model"]["vocab"].update({"<0x41>x": j["model"]["vocab"].pop("<0x41>")}), "no piece for 1 of the"),
    ],
)
def test_the_tokenizer_of_another_model_says_what_differs(refusal, json_text, edit, came):
    text = refusal(edited(json_text, edit))
    assert text.startswith("Gemma's tokenizer must be BPE with byte fallback that only rewrites spaces, got ")
    assert came in text
    assert text.endswith(OTHER_MODEL)


def test_missing_merges_are_found(refusal, json_text):
    text = refusal(edited(json_text, lambda j: j["model"].pop("merges")))
    assert "with Missing vocab/merges" in text
    text = refusal(edited(json_text, lambda j: j["model"].update(merges=[])))
    assert text == (
        "merges must make the vocabulary's pieces, got none of 14 tried, such as 'aa'.\n"
        "The merges are missing or belong to another vocabulary."
    )


def test_ids_with_a_hole_are_refused(refusal, json_text):
    assert refusal(edited(json_text, lambda j: j["model"]["vocab"].update(hello=3))) == (
        "302 pieces must have the ids 0 to 301, got no piece for id 263.\n"
        "A piece or an id occurs twice, or one is missing."
    )


def test_merges_that_make_control_tokens_of_text_are_refused(refusal, json_text):
    def edit(whole):
        whole["model"]["vocab"] |= {"<pa": 302, "d>": 303, "<": 304, ">": 305, "p": 306, "<p": 307}
        whole["model"]["merges"] += [["<", "p"], ["<p", "a"], ["d", ">"], ["<pa", "d>"]]

    assert refusal(edited(json_text, edit)) == ("text must never become a control token, got merges that make <pad>.")


def test_a_subword_prefix_is_refused_before_the_parser_sees_it(refusal, json_text):
    """The Rust parser aborts the process on it: the merges are cut inside a character."""
    text = refusal(edited(json_text, lambda j: j["model"].update(continuing_subword_prefix="x")))
    assert "with continuing_subword_prefix set, which Gemma's tokenizer leaves null" in text


def test_a_json_of_something_else_is_refused(refusal):
    assert refusal(b'{"architectures": ["LlamaForCausalLM"]}').endswith(CUT_OFF)
    assert refusal(b"\xff\xfe\x00").startswith("a tokenizer must be a whole tokenizer.json, got 3 bytes with 'utf-8'")


def test_a_tokenizer_model_of_another_kind_is_refused(refusal, small_lists, spm_bytes):
    assert refusal(spm_bytes(*small_lists, model_type=1), "tokenizer.model") == (
        f"Gemma's SentencePiece model must be of type BPE, got unigram.\n{OTHER_MODEL}"
    )
    changing = spm_bytes(*small_lists, normalizer=((2, b"table"), (4, 1)))
    assert refusal(changing, "tokenizer.model") == (
        "Gemma's SentencePiece model must keep text as it is, "
        f"got a normalisation table, add_dummy_prefix, remove_extra_whitespaces.\n{OTHER_MODEL}"
    )


@pytest.mark.parametrize(
    ("data", "came"),
    [
        (b"\x0a\xff\xff\xff\xff\x0fabc", "a field of 4294967295 bytes with 3 left"),
        (b"\x0a\x05abc", "a field of 5 bytes with 3 left"),
        (b"\x0a\x04\x0a\xff\xff\x7f", "a field of 2097151 bytes with 0 left"),
        (b"\x0b", "wire type 3 at byte 0"),
        (b"\x08\xff", "the end of the file inside a number"),
        (b"\x0a", "the end of the file inside a number"),
        (b"\x08" + b"\xff" * 11, "a number of more than ten bytes at byte 1"),
        (b"\x0d\x01\x02", "a field of 4 bytes with 2 left"),
        (b"\x08\x01", "the number 1 where a length-delimited field belongs"),
    ],
)
def test_hostile_sizes_in_a_tokenizer_model_are_refused(refusal, data, came):
    assert refusal(data, "tokenizer.model") == (
        f"a tokenizer.model must be SentencePiece's protobuf, got {came}.\n{CUT_OFF}"
    )


def test_a_tokenizer_model_without_pieces_is_refused(refusal):
    assert refusal(b"", "tokenizer.model") == "a tokenizer.model must hold pieces, got none in 0 bytes."


def test_a_truncated_or_changed_tokenizer_model_is_refused_or_works(tmp_path, small_lists, spm_bytes):
    data, rng, refused = spm_bytes(*small_lists), random.Random(2), 0
    path = tmp_path / "tokenizer.model"
    for i in range(300):
        damaged = bytearray(data[: rng.randrange(len(data))] if i % 2 else data)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            loaded = Tokenizer.load(path)
            assert loaded.decode(loaded.encode("hello world")) == "hello world"
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 150
