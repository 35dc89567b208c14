"""Which replica a prompt goes to: by the longest beginning that one has seen, unless that one is overloaded."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gemworks.server.prefixes import BLOCK, MAX_BLOCKS, PrefixTable, choose, prefix_keys


def body(**fields) -> bytes:
    return json.dumps(fields).encode()


def chat(*texts: str) -> bytes:
    roles = ("user", "assistant")
    return body(messages=[{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])


@given(st.text(max_size=1000), st.text(max_size=300), st.text(max_size=300))
def test_equal_beginnings_have_equal_keys_and_no_others_have(shared, one, other):
    """Keys agree for as many whole blocks as the texts do."""
    first, second = prefix_keys(body(prompt=shared + one)), prefix_keys(body(prompt=shared + other))
    text_1, text_2 = json.dumps(shared + one, ensure_ascii=False), json.dumps(shared + other, ensure_ascii=False)
    alike = next((i for i, (a, b) in enumerate(zip(text_1, text_2, strict=False)) if a != b), None)
    same = sum(a == b for a, b in zip(first, second, strict=False))
    if alike is None:  # one begins as the other, up to its closing quote
        assert same == min(len(first), len(second))
    else:
        assert alike // BLOCK - 1 <= same <= alike // BLOCK


def test_the_next_turn_of_a_conversation_begins_as_the_last_one():
    question, answer = "why " * 200, "because " * 100
    before, after = prefix_keys(chat(question)), prefix_keys(chat(question, answer, "and then?"))
    assert len(before) >= 5
    assert after[: len(before)] == before


def test_another_system_prompt_or_model_is_another_beginning():
    question = "why " * 200
    keys = {prefix_keys(body(model=model, prompt=question))[0] for model in ("a", "b")}
    keys |= {prefix_keys(body(system=system, prompt=question))[0] for system in ("be brief", "be long")}
    assert len(keys) == 4


def test_what_has_no_prompt_or_a_short_one_has_no_keys():
    for sent in (b"", b"{", b"[]", b"7", body(prompt="short"), body(input=None), b"\xff", b"[" * 100_000):
        assert prefix_keys(sent) == ()


def test_half_a_surrogate_pair_is_hashed():
    assert len(prefix_keys(b'{"prompt": "' + b"\\ud800" * 200 + b'"}')) == 1


def test_no_more_than_the_beginning_of_a_long_prompt_is_looked_at():
    assert len(prefix_keys(body(prompt="x" * 1_000_000))) == MAX_BLOCKS


def test_the_longest_known_beginning_wins():
    table = PrefixTable()
    table.note([b"1", b"2"], "left")
    table.note([b"1", b"2", b"3"], "right")
    table.note([b"1", b"9"], "left")
    assert table.find([b"1", b"2", b"3", b"4"]) == ("right", 3)
    assert table.find([b"1", b"9"]) == ("left", 2)
    assert table.find([b"7"]) == (None, 0)


def test_a_replica_that_is_gone_is_forgotten():
    table = PrefixTable()
    table.note([b"1"], "left")
    table.note([b"2"], "right")
    table.forget("left")
    assert table.find([b"1"]) == (None, 0)
    assert table.find([b"2"]) == ("right", 1)


def test_a_full_table_drops_what_was_used_longest_ago():
    table = PrefixTable(limit=3)
    table.note([b"1", b"2", b"3"], "left")
    table.note([b"1"], "left")
    table.note([b"4"], "right")
    assert len(table) == 3
    assert table.find([b"2"]) == (None, 0)
    assert table.find([b"1"]) == ("left", 1)


def test_the_replica_with_the_prompt_comes_first_until_it_is_overloaded():
    loads = {"left": 9, "right": 1}
    assert choose("left", loads, max_ahead=8) == [["left"], ["right"]]
    assert choose("left", {"left": 10, "right": 1}, max_ahead=8) == [["left", "right"]]
    assert choose(None, loads, max_ahead=8) == [["left", "right"]]
    assert choose("gone", loads, max_ahead=8) == [["left", "right"]]
