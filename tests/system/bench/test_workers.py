"""Workers are real processes: what they compute, what they say when they cannot."""

import os
import sys
from pathlib import Path

import jax
import pytest

from gemworks import LLM
from gemworks.bench.peaks import measure
from gemworks.bench.remote import Remote
from gemworks.bench.starts import start
from gemworks.bench.system import SystemSpec
from gemworks.errors import BackendError
from gemworks.ops import native

TINY = Path(__file__).parents[3] / "gemworks" / "assets" / "tiny"
PROMPT = [2, 30, 40, 50, 60]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "worker.log"


@pytest.mark.exhaustive
def test_a_worker_answers_as_the_model_in_this_process_does(log):
    """And goes on after a call that failed."""
    llm = LLM(TINY)
    best = llm.generate(PROMPT, temperature=0.0, max_tokens=1, logprobs=True, top_logprobs=3)
    assert best.logprobs is not None
    with Remote(SystemSpec("xla", "bf16", str(TINY), 1), log) as worker:
        facts = worker.prepare(context=1024, sequences=1)
        assert facts["version"] == f"jax {jax.__version__}"
        with pytest.raises(BackendError, match="prefill comes before decode"):
            worker.decode(count=1)
        assert worker.prefill(ids=PROMPT) > 0
        assert worker.decode(count=3) > 0
        assert worker.batch(prompts=[PROMPT, PROMPT[:3]], count=2) > 0
        assert worker.matmuls(tokens=8) > 0
        top = best.logprobs[0].top
        token, scores = worker.scores(ids=PROMPT, wanted=[token for token, _ in top])
    assert token == best.token_ids[0]
    # Log-probabilities are scores less a constant.
    assert [a - scores[0] for a in scores] == pytest.approx([b - top[0][1] for _, b in top], abs=0.05)


def test_a_worker_that_cannot_load_says_why(log, tmp_path):
    with pytest.raises(BackendError, match=r'ours int4-b32: .*no file.*nothing"\. What it said is in .*worker\.log'):
        Remote(SystemSpec("ours", "int4-b32", str(tmp_path / "nothing"), 1), log)
    assert "Traceback" in log.read_text()


def test_a_worker_that_dies_is_told_apart(log):
    with (
        Remote(SystemSpec("xla", "bf16", str(TINY), 1), log) as worker,
        pytest.raises(BackendError, match=r"xla bf16: its process ended with -?\d+"),
    ):
        worker._child.process.kill()
        worker.prepare(context=64, sequences=1)


def test_rivals_in_another_python_need_nothing_of_this_one(log, tmp_path):
    """The worker of a bare Python gets as far as the rival's own package, without jax or numpy from here."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    with pytest.raises(BackendError, match="openvino int4: ModuleNotFoundError: No module named 'numpy'"):
        Remote(SystemSpec("openvino", "int4", str(tmp_path), 1, str(script)), log)


def test_a_fresh_process_tells_when_its_first_token_came_and_its_peak(log):
    found = start(SystemSpec("ours", "bf16", str(TINY), 1), PROMPT, 3, log)
    assert 0 < found.first_s < 120
    assert found.context > len(PROMPT)
    if sys.platform == "linux":
        assert found.peak_bytes is not None and 50e6 < found.peak_bytes < 2e9


def test_a_fresh_process_that_fails_is_told(log, tmp_path):
    with pytest.raises(BackendError, match="a fresh process ended with 1"):
        start(SystemSpec("ours", "bf16", str(tmp_path), 1), PROMPT, 1, log)


def test_peaks_grow_with_nothing_but_the_machine():
    if native.native_library() is None:
        pytest.skip(f"no native library: {native.why_missing()}")
    found = measure(1, seconds=0.02, buffer_bytes=1 << 26)
    assert found.why_missing is None
    assert 0.5 < (found.read_gb_s or 0) < 2000
    if os.uname().machine == "x86_64":
        assert found.int8_name.split()[0] in ("avx512_vnni", "avx_vnni", "avx2", "not")
        assert 1 < (found.fma_gmac_s or 0) < 1000
        # An 8-bit instruction does at least as much as an fp32 one.
        assert (found.int8_gmac_s or 0) > 0.8 * (found.fma_gmac_s or 0)
