from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.errors import RequestError
from gemworks.text import StopMatcher

pieces = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aa", "bab", "c", ""]), max_size=20)
some_stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def text_before_stop(text, stops):
    """(text up to the stop that is complete first, whether there is one), by trying every length."""
    for end in range(len(text) + 1):
        if here := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, here))], True
    return text, False


@given(stops=some_stops, chunks=pieces)
def test_text_ends_before_the_first_complete_stop(stops, chunks):
    """However the text is cut into pieces, what is handed out is the text before the stop, or all of it."""
    matcher, out, stopped = StopMatcher(stops), "", False
    for chunk in chunks:
        emitted, stopped = matcher.push(chunk)
        out += emitted
        assert not any(stop in out for stop in stops)
    out += matcher.flush()
    assert (out, stopped) == text_before_stop("".join(chunks), stops)
    assert (matcher.matched is not None) == stopped


@given(stops=some_stops, chunks=pieces)
def test_no_more_is_held_back_than_could_become_a_stop(stops, chunks):
    """Held back is the longest end of the text that some stop begins with, nothing else."""
    matcher, out, seen = StopMatcher(stops), "", ""
    for chunk in chunks:
        emitted, stopped = matcher.push(chunk)
        if stopped:
            return
        out, seen = out + emitted, seen + chunk
        held = seen[len(out) :]
        ends = [seen[i:] for i in range(len(seen))]
        assert held == next((end for end in ends if any(stop.startswith(end) for stop in stops)), "")


def test_every_short_text_and_pair_of_stops():
    """All texts of 7 letters, all pairs of stops up to 3 letters, pushed letter by letter and by twos."""
    texts = ["".join(letters) for letters in product("ab", repeat=7)]
    stops = ["".join(letters) for n in (1, 2, 3) for letters in product("ab", repeat=n)]
    for pair in combinations(stops, 2):
        for text in texts:
            wanted = text_before_stop(text, pair)
            for step in (1, 2):
                matcher, out, stopped = StopMatcher(pair), "", False
                for i in range(0, len(text), step):
                    emitted, stopped = matcher.push(text[i : i + step])
                    out += emitted
                assert (out + matcher.flush(), stopped) == wanted, (text, pair, step)


def test_a_stop_over_three_pushes():
    matcher = StopMatcher(["END"])
    assert [matcher.push(text) for text in ("the E", "N", "D of")] == [("the ", False), ("", False), ("", True)]
    assert matcher.matched == "END"
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


def test_of_two_stops_at_one_place_the_longer_is_cut():
    matcher = StopMatcher(["c", "abc"])
    assert matcher.push("xabc") == ("x", True)
    assert matcher.matched == "abc"


def test_a_single_string_is_one_stop():
    assert StopMatcher("ab").push("a b ab") == ("a b ", True)


def test_without_stops_all_text_passes():
    assert StopMatcher([]).push("anything") == ("anything", False)


def test_an_empty_stop_is_refused():
    with pytest.raises(RequestError) as error:
        StopMatcher(["x", ""])
    assert str(error.value) == "a stop string must have at least one character, got an empty one."
