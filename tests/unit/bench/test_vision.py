"""The vision benchmark's report: ratios, errors beside the exact path, and what is said of targets."""

from pathlib import Path

import numpy as np
import pytest

from gemworks.bench import vision
from gemworks.model.vision_config import SIGLIP_SO400M_896

PLAN = vision.Plan(
    folder=Path("models"), config=SIGLIP_SO400M_896, systems=("ours",), threads=2, repeats=3, log=Path("log")
)


def samples(**seconds):
    told = {"extra_bytes": [7e8, 9e8, 8e8]}
    times = {name: {"seconds": [s, s + 1, s + 2], "cpu_seconds": [2 * s] * 3} for name, s in seconds.items()}
    return {name.replace("_", " "): one | told for name, one in times.items()}


def report(found, soft=None):
    soft = soft or {name: np.ones((4, 3)) for name in found}
    return vision._report(PLAN, found, soft, 400.0)


def test_medians_and_ratios_to_ours():
    made = report(samples(ours=9, ours_fp32=49, transformers_float32=39))["systems"]
    assert made["ours"]["seconds"] == 10 and made["transformers float32"]["ours_ratio"] == 4.0
    assert made["ours"]["gmac_s"] == pytest.approx(vision.multiply_adds(SIGLIP_SO400M_896) / 1e10)
    assert made["ours"]["peak_share"] == pytest.approx(made["ours"]["gmac_s"] / 400)
    assert made["ours"]["extra_bytes"] == 9e8, "the largest, not the median"


def test_answers_are_compared_with_the_exact_path_or_with_nothing():
    exact = np.eye(3)
    soft = {"ours": exact + np.array([0, 0.5, 0]), "ours fp32": exact}
    made = report(samples(ours=9, ours_fp32=49), soft)["systems"]
    assert made["ours"]["relative_error"] == pytest.approx(0.5) and made["ours fp32"]["cosine"] == pytest.approx(1)
    assert made["ours"]["cosine"] == pytest.approx(1 / 1.25**0.5), "the worst soft token, not their mean"
    alone = report(samples(ours=9))
    assert alone["systems"]["ours"]["cosine"] is None
    assert "nan" not in vision.text(alone) and "None" not in vision.text(alone)


def test_targets_are_met_or_missed_in_words():
    found = samples(ours=9, transformers_float32=39, transformers_bfloat16=29) | samples(**{"llama.cpp": 19})
    assert report(found)["targets"] == [
        "met: 4x transformers float32, 4.00x",
        "MISSED: 4x transformers bfloat16, 3.00x",
        "met: 2x llama.cpp, 2.00x",
        "met: at most 1.2 GB of extra memory, 0.90",
    ]
    assert report(samples(transformers_float32=39))["targets"] == []
