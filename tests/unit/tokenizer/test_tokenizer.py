import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.errors import CheckpointError, RequestError, StorageError
from gemworks.tokenizer import TEMPLATE, Tokenizer

CONTROLS = ["<unk>", "<start_of_turn>", "<bos>", "<end_of_turn>", "<eos>", "<unused7>", "[multimodal]", "<pad>"]
parts = st.sampled_from(
    [*CONTROLS, "hello", " world", "  ", "\n", "\n\n\n\n", "\t", "<b>", "\u00e9", "\U00010348", "aaa"]
)
texts = st.lists(parts | st.text(max_size=4), max_size=12).map("".join)


def names(tokenizer, ids):
    return [tokenizer.piece(i) for i in ids]


def reference_names(lists, text, *, control):
    """Split `text` by the rules of the specification, naively: added tokens, then the best merge, again and again."""
    pieces, scores, types = lists
    added = [p for p, t in zip(pieces, types, strict=True) if t == 4 or (control and t == 3)]
    added.sort(key=len, reverse=True)
    added = [p for p in added if not p.isspace() or p[0] != " "]  # space runs match as U+2581; spaces merge below
    rank = {p: s for p, s, t in zip(pieces, scores, types, strict=True) if t == 1}
    rank |= {"\u2581\u2581": 1.0, "\u2581\u2581\u2581": 1.0}
    out, at, plain = [], 0, ""

    def flush(symbols):
        while True:
            pairs = [(rank[a + b], len(a), -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in rank]
            if not pairs:
                break
            i = -max(pairs)[2]
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        for symbol in symbols:
            out.extend([symbol] if symbol in rank else [f"<0x{b:02X}>" for b in symbol.encode()])

    while at < len(text):
        hit = next((p for p in [*added, "\u2581\u2581\u2581", "\u2581\u2581"] if text.startswith(p, at)), None)
        if hit is None:
            plain, at = plain + text[at], at + 1
            continue
        flush(list(plain.replace(" ", "\u2581")))
        out.append(hit)
        plain, at = "", at + len(hit)
    flush(list(plain.replace(" ", "\u2581")))
    return [name.replace("\u2581", " ") for name in out]


@given(text=texts, control=st.booleans())
def test_ids_follow_the_specification(small, small_lists, text, control):
    """Leftmost-longest added tokens, spaces to U+2581, best merge first, bytes for the rest: as a naive splitter."""
    assert names(small, small.encode(text, control=control)) == reference_names(small_lists, text, control=control)


def test_ids_are_looked_up_by_name(small):
    assert (small.bos_id, small.unk_id, small.start_of_turn_id) == (2, 0, 1)
    assert (small.end_of_turn_id, small.eos_id, small.pad_id) == (297, 298, 301)
    assert small.id_of("hello") == 263
    assert small.id_of("nothing") is None
    assert names(small, sorted(small.control_ids)) == CONTROLS
    assert small.size == 302


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_token_typed_by_a_user_is_text(small, name):
    ids = small.encode(f"hello{name}hello")
    assert small.control_ids.isdisjoint(ids)
    assert small.decode(ids) == f"hello{name}hello"
    assert small.encode(f"hello{name}hello", control=True) == [263, small.id_of(name), 263]


@given(text=texts)
def test_text_comes_back_exactly(small, text):
    assert small.decode(small.encode(text)) == text.replace("\u2581", " ")
    assert small.decode(small.encode(text, control=True), skip_control=False) == text.replace("\u2581", " ")


def test_decode_leaves_control_tokens_out(small):
    ids = small.encode("<bos> hello<eos>", control=True)
    assert small.decode(ids) == " hello"
    assert small.decode(ids, skip_control=False) == "<bos> hello<eos>"


def test_a_token_is_shown_as_people_read_it(small):
    ids = small.encode(" world\n\u20ac")
    assert names(small, ids) == [" world", "\n", "<0xE2>", "<0x82>", "<0xAC>"]
    assert [small.token_bytes(i) for i in ids] == [b" world", b"\n", b"\xe2", b"\x82", b"\xac"]


def test_bytes_that_are_no_character_become_replacement_characters(small):
    e2, x82 = small.id_of("<0xE2>"), small.id_of("<0x82>")
    assert small.decode([e2, x82, small.id_of("hello"), x82]) == "\ufffdhello\ufffd"


def test_lone_surrogates_are_refused(small):
    with pytest.raises(RequestError) as error:
        small.encode("ok\udc80")
    assert str(error.value) == "text must be Unicode, got the lone surrogate U+DC80 at character 2."


@pytest.mark.parametrize("token_id", [-1, 302, 10**12])
def test_ids_outside_the_vocabulary_are_refused(small, token_id):
    with pytest.raises(RequestError) as error:
        small.decode([token_id])
    assert str(error.value) == f"a token id must be between 0 and 301, got {token_id}."


@given(text=texts)
def test_saved_and_loaded_it_gives_the_same_ids(saved, small, text):
    for control in (False, True):
        assert saved.encode(text, control=control) == small.encode(text, control=control)


@pytest.fixture(scope="session")
def saved(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    small.save(directory)
    return Tokenizer.load(directory)


def test_the_saved_config_names_what_the_vocabulary_has(small, tmp_path):
    small.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE
    assert (config["bos_token"], config["eos_token"], config["tokenizer_class"]) == ("<bos>", "<eos>", "GemmaTokenizer")
    assert config["added_tokens_decoder"]["297"]["special"] is True
    assert config["added_tokens_decoder"]["299"] == {
        "content": "<unused7>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": False,
    }
    assert "image_token" not in config
    small.save(tmp_path, chat_template=None)
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_a_directory_that_cannot_be_written_is_named(small, tmp_path):
    with pytest.raises(StorageError) as error:
        small.save(tmp_path / "gone")
    assert str(error.value) == f"{tmp_path}/gone: the tokenizer must be writable, got No such file or directory."


def test_a_tokenizer_model_gives_the_same_ids(small, small_lists, spm_bytes, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(spm_bytes(*small_lists))
    loaded = Tokenizer.load(tmp_path)
    text = "hello   world\n\n\n\n<b><unused7>\u20ac"
    assert loaded.encode(text) == small.encode(text)
    assert loaded.encode(text, control=True) == small.encode(text, control=True)


def test_tokenizer_json_goes_before_tokenizer_model(small, tmp_path):
    small.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    assert Tokenizer.load(tmp_path).size == small.size


def test_a_token_added_behind_the_vocabulary_keeps_its_id(small, tmp_path):
    """A fine-tune's own token, control or not, whatever the number of control tokens before it."""
    import tokenizers

    small.save(tmp_path)
    engine = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    engine.add_special_tokens(["<|tool|>"])
    engine.add_tokens(["hellohello"])
    engine.save(str(tmp_path / "tokenizer.json"))
    grown = Tokenizer.load(tmp_path)
    assert grown.size == 304
    assert grown.encode("hellohello") == grown.encode("hellohello", control=True) == [303]
    assert grown.encode("<|tool|>", control=True) == [302]
    assert 302 not in grown.encode("<|tool|>")
    assert grown.decode([302, 303]) == "hellohello"


def test_nothing_in_a_directory_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CheckpointError) as error:
        Tokenizer.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: a model directory must hold tokenizer.json or tokenizer.model, got neither."
    )
    with pytest.raises(StorageError) as error:
        Tokenizer.load(tmp_path / "gone.json")
    assert str(error.value) == f"{tmp_path}/gone.json: the tokenizer must be readable, got No such file or directory."


def test_an_embedding_must_have_a_row_for_every_piece(small):
    small.require_rows(302, "m")
    small.require_rows(320, "m")
    small.require_rows(297, "m")  # the last five are control tokens, never seen in text
    for rows in (296, 1400):
        with pytest.raises(CheckpointError) as error:
            small.require_rows(rows, "m.gguf")
        assert str(error.value) == (
            f"m.gguf: the embedding must have a row for each of the tokenizer's 302 pieces, got {rows} rows.\n"
            "the vocabulary is likely the tokenizer of another model."
        )
