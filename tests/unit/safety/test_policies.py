"""Policies, verdicts and thresholds: plain data, and what they refuse."""

import hashlib
import math

import pytest

from gemworks.errors import RequestError
from gemworks.safety import POLICIES, Policy, Verdict, checked_threshold, policies_of
from gemworks.safety.verdict import yes_probability

OWN = Policy("weapons", "No Weapons: none.")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (None, ["dangerous", "sexual", "violence"]),
        ("sexual", ["sexual"]),
        (["violence", "dangerous"], ["violence", "dangerous"]),
        (OWN, ["weapons"]),
        ([OWN, "sexual"], ["weapons", "sexual"]),
        ({"weapons": "No Weapons: none.", "sexual": "Mine."}, ["weapons", "sexual"]),
        ((name for name in ["sexual"]), ["sexual"]),
    ],
)
def test_what_may_be_asked_for(asked, names):
    found = policies_of(asked)
    assert [policy.name for policy in found] == names
    assert all(policy == POLICIES.get(policy.name, policy) or policy.text == "Mine." for policy in found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("sexuall", 'policies are dangerous, sexual, violence, got "sexuall". Did you mean "sexual"?'),
        ([], "at least one policy must be named, got none."),
        (["sexual", Policy("sexual", "Mine.")], 'every policy must have a name of its own, got "sexual" twice.'),
        ([7], "a policy must be a name or a Policy, got 7."),
        (7, "policies must be names, Policies or a mapping, got 7."),
        ({"x": " "}, "a policy's text must be a text of 1 to 4,000 characters, got ' '."),
        ({"x": None}, "a policy's text must be a text of 1 to 4,000 characters, got None."),
        ({"x": "a" * 4001}, "a policy's text must be a text of 1 to 4,000 characters, got 4,001 characters."),
        ({"": "a"}, "a policy's name must be a text of 1 to 80 characters, got ''."),
    ],
)
def test_what_is_refused(asked, message):
    with pytest.raises(RequestError) as caught:
        policies_of(asked)
    assert str(caught.value).startswith(message)


def test_the_texts_are_those_of_the_release():
    """A changed letter is another policy, and other probabilities (tests/oracle/guard compares whole texts)."""
    sums = {name: hashlib.sha256(policy.text.encode()).hexdigest()[:16] for name, policy in POLICIES.items()}
    assert sums == {"dangerous": "9df009dd0381d4d7", "sexual": "74aa504300e008ed", "violence": "1347e6ef70d70521"}


def test_a_verdict_is_flagged_from_the_threshold_on():
    probabilities = {"dangerous": 0.5, "sexual": 0.49999, "violence": 1.0}
    verdict = Verdict(image="a.png", probabilities=probabilities, threshold=0.5, width=3, height=2)
    assert verdict.violated == ("dangerous", "violence") and verdict.flagged
    safe = Verdict(image="a.png", probabilities=probabilities | {"violence": 0.0, "dangerous": 0.1}, threshold=0.5)
    assert safe.violated == () and not safe.flagged
    assert verdict.as_dict() == {
        "image": "a.png",
        "flagged": True,
        "violated": ["dangerous", "violence"],
        "probabilities": probabilities,
        "threshold": 0.5,
        "width": 3,
        "height": 2,
    }


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, math.nan, math.inf, "0.5", None, True])
def test_a_threshold_that_decides_nothing_is_refused(threshold):
    with pytest.raises(RequestError, match="threshold must be above 0 and at most 1, got "):
        checked_threshold(threshold)


def test_thresholds_that_are_taken():
    assert [checked_threshold(one) for one in (1e-9, 0.5, 1)] == [1e-9, 0.5, 1.0]


@pytest.mark.parametrize(
    ("yes", "no", "expected"), [(0.0, 0.0, 0.5), (-1.0, 1.0, 0.1192029), (2000.0, 0.0, 1.0), (-2000.0, 0.0, 0.0)]
)
def test_the_probability_is_the_softmax_of_the_two(yes, no, expected):
    assert yes_probability(yes, no) == pytest.approx(expected, abs=1e-7)
    assert yes_probability(no, yes) == pytest.approx(1 - expected, abs=1e-7)


@pytest.mark.parametrize(("yes", "no"), [(math.nan, 0.0), (0.0, math.nan), (-math.inf, -math.inf)])
def test_scores_that_are_no_numbers_are_no_verdict(yes, no):
    with pytest.raises(RequestError, match="scores of Yes and No must be finite"):
        yes_probability(yes, no)
