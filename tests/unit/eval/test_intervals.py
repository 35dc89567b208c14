"""Intervals against scipy's, a jackknife, and the edges where formulas fail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gemworks.eval import ratio, share
from gemworks.eval.intervals import Figure


@given(n=st.integers(1, 5000), part=st.floats(0, 1))
def test_a_share_has_wilsons_interval(n, part):
    successes = round(part * n)
    ours = share("x", successes, n)
    theirs = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_nothing_measured_is_no_value():
    assert share("x", 0, 0).value is None and share("x", 0, 0).shown() == "none (n = 0)"
    assert ratio("x", [], []).value is None
    assert (ratio("x", [3.0], [2.0]).value, ratio("x", [3.0], [2.0]).low) == (1.5, None)
    with pytest.raises(ValueError, match="between 0 and n, got 3 of 2"):
        share("x", 3, 2)


def test_a_ratio_is_as_uncertain_as_leaving_items_out_says():
    draw = np.random.default_rng(0)
    bottoms = draw.uniform(50, 500, 400)
    tops = bottoms * 1.3 + draw.normal(0, 20, 400)
    ours = ratio("x", tops.tolist(), bottoms.tolist())
    left_out = [(tops.sum() - t) / (bottoms.sum() - b) for t, b in zip(tops, bottoms, strict=True)]
    error = np.sqrt(399 / 400 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert ours.value == pytest.approx(tops.sum() / bottoms.sum())
    assert (ours.high - ours.low) / 2 == pytest.approx(1.959964 * error, rel=0.01)


def test_figures_are_told_with_their_interval():
    assert share("x", 70, 80).shown() == "87.5 % (78.5 to 93.1, n = 80)"
    assert Figure(name="x", value=1.25, n=1, is_share=False).shown() == "1.250 (n = 1)"
