"""llama.cpp in its worker runs the same weights as ours, and its own count of their bytes is the one we divide by."""

from importlib.metadata import PackageNotFoundError, version

import pytest
from small_models import small_config

from gemworks.bench import random_model, work
from gemworks.bench.answers import relative_distance
from gemworks.bench.remote import Remote
from gemworks.bench.system import SystemSpec
from gemworks.bench.vocabulary import save_made_up

try:
    version("llama-cpp-python")
except PackageNotFoundError:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

CONFIG = small_config(model_dim=64, vocab_size=1000, max_positions=2048)
PROMPT = [2, *range(500, 530)]
WANTED = list(range(0, 1000, 7))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_made_up(folder, 1000)
    random_model.make_random(CONFIG, folder / "small", tokenizer=folder)
    return folder / "small"


@pytest.mark.parametrize(("kind", "ours", "apart"), [("q4_0-pure", "int4-b32", 0.1), ("q8_0", "int8-b32", 0.05)])
def test_ours_and_llama_cpp_score_alike_on_the_same_weights(model, tmp_path, kind, ours, apart):
    """Three windows and more, so that the sliding mask is seen; a batch and a decode besides."""
    path = tmp_path / f"small-{kind}.gguf"
    random_model.write_gguf(model, kind, path)
    log = tmp_path / "worker.log"
    with Remote(SystemSpec("llama.cpp", kind, str(path), 1), log) as rival:
        facts = rival.prepare(context=128, sequences=1)
        token, scores = rival.scores(ids=PROMPT, wanted=WANTED)
        assert rival.decode(count=3) > 0
        assert rival.batch(prompts=[PROMPT, PROMPT[:5]], count=2) > 0
    with Remote(SystemSpec("ours", ours, str(model), 1), log) as system:
        our_token, our_scores = system.scores(ids=PROMPT, wanted=WANTED)
    assert facts["weight_bytes"] == work.gguf_bytes(CONFIG, kind)
    assert relative_distance(our_scores, scores) < apart
    assert our_token == token
