from hypothesis import given
from hypothesis import strategies as st


@given(data=st.data(), skip=st.booleans())
def test_pushed_texts_add_up_to_decode(small, data, skip):
    """Whatever the ids: bytes in any order, control tokens in between, half characters at the end."""
    some_bytes = [small.id_of(f"<0x{b:02X}>") for b in (0x41, 0x80, 0x90, 0xBF, 0xC2, 0xE2, 0xED, 0xF0, 0xF4, 0xFF)]
    ids = data.draw(st.lists(st.sampled_from(some_bytes) | st.integers(0, small.size - 1), max_size=30))
    decoder = small.stream(skip_control=skip)
    pushed = "".join(map(decoder.push, ids)) + decoder.finish()
    assert pushed == small.decode(ids, skip_control=skip)


def test_a_character_comes_whole_or_not_at_all(small):
    decoder = small.stream()
    ids = small.encode("a\U0001f600o")
    assert [decoder.push(i) for i in ids] == ["a", "", "", "", "\U0001f600", "o"]
    assert decoder.finish() == ""


def test_half_a_character_at_the_end_is_one_replacement_character(small):
    decoder = small.stream()
    assert [decoder.push(i) for i in small.encode("\U0001f600")[:3]] == ["", "", ""]
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""
