"""A model of the real 270M shape, quantized: what a warm start reads, compiles and takes in memory."""

import json
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from gemworks.model.config import GEMMA3_270M
from gemworks.model.costs import kv_bytes
from gemworks.ops import select
from gemworks.weights.checkpoint import GenerationDefaults
from gemworks.weights.names import expected_shapes
from gemworks.weights.packed_store import packed_of
from gemworks.weights.save import Source, save_hf

ALLOWED_OVER_FILE_AND_CACHE = 350e6

# The child reports itself: what it imported, what it compiled, its peak (ru_maxrss would count its parent's pages).
CHILD = """
import json, sys
from gemworks import LLM
from gemworks.engine import programs
saved = []
programs._save = lambda name, program: saved.append(name)
llm = LLM(sys.argv[1], quant="int4-b32", embed="int8")
answer = llm.generate("Once upon a time there was a small house", max_tokens=3, temperature=0)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
report = {"peak": peak * 1024, "ids": answer.token_ids, "compiled": len(saved), "context": llm.context}
print(json.dumps(report | {"tokenizers": "tokenizers" in sys.modules}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.skipif(not select.packs_weights(), reason="nothing is packed without the native library")
def test_a_warm_start_maps_packed_weights_compiled_programs_and_the_vocabulary(tmp_path, official, monkeypatch):
    monkeypatch.setenv("GEMWORKS_CACHE", str(tmp_path / "cache"))
    pattern = np.random.default_rng(0).normal(0, 0.02, 1 << 16).astype(ml_dtypes.bfloat16)
    sources = {
        name: Source("BF16", lambda shape=shape: np.resize(pattern, shape))
        for name, shape in expected_shapes(GEMMA3_270M).items()
    }
    model = tmp_path / "model"
    save_hf(
        model,
        GEMMA3_270M,
        sources,
        generation=GenerationDefaults(eos_ids=(1, 106)),
        beside=lambda directory: shutil.copy(official / "tokenizer.json", directory),
    )

    def start() -> dict:
        ran = subprocess.run([sys.executable, "-c", CHILD, str(model)], capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return json.loads(ran.stdout.splitlines()[-1])

    # The first child keeps no programs, so it is the second that compiles for the third.
    first = start()
    keeping = CHILD.replace("programs._save = lambda name, program: saved.append(name)", "")
    subprocess.run([sys.executable, "-c", keeping, str(model)], check=True, capture_output=True, timeout=600)
    warm = start()
    assert first["compiled"] == 3 and first["tokenizers"]
    assert warm["compiled"] == 0 and not warm["tokenizers"]
    assert warm["ids"] == first["ids"]
    [packed] = packed_of(model)
    over = warm["peak"] - packed.num_bytes - kv_bytes(GEMMA3_270M, warm["context"])
    assert over <= ALLOWED_OVER_FILE_AND_CACHE, f"{over / 1e6:.0f} MB over packed file and cache"
