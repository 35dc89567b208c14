"""lm-evaluation-harness, local-completions: its log-likelihoods through a real server are those of LLM.logprobs."""

import pytest

from gemworks import LLM

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("tenacity", reason="lm-eval[api] is not installed")

# The harness's own warnings are for its developers.
pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " a cat."),
    ("Once upon a time", " there was a small house."),
    ("Two and two are", " four"),
    ("1, 2, 3,", " 4, 5"),
]


@pytest.fixture(scope="module")
def llm():
    made = LLM("tiny")
    yield made
    made.close()


def harness(server, **told):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    # "remote": it tokenizes with the server's /tokenizer_info and /tokenize.
    return LocalCompletionsAPI(
        base_url=f"{server.v1}/completions", model="tiny", tokenizer_backend="remote", max_length=512, **told
    )


@pytest.mark.parametrize("told", [{"batch_size": 1}, {"batch_size": 4}, {"num_concurrent": 3}])
def test_loglikelihoods_are_those_of_llm(server, llm, told):
    from lm_eval.api.instance import Instance

    model = harness(server, **told)
    asked = [Instance("loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(PAIRS)]
    found = model.loglikelihood(asked)
    for pair, (loglikelihood, is_greedy) in zip(PAIRS, found, strict=True):
        before, after = model._encode_pair(*pair)
        scored = llm.logprobs(before + after, top=1)
        mine = scored.logprobs[len(before) :]
        assert loglikelihood == pytest.approx(sum(score.logprob for score in mine), abs=1e-4)
        assert is_greedy == all(score.top[0][0] == score.token_id for score in mine)


def test_it_detects_the_tokenizer_and_generates(server, llm):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(base_url=f"{server.v1}/completions", model="tiny", max_length=512)
    assert model.tokenizer_backend == "remote"
    prompt = "The capital of France is"
    asked = [Instance("generate_until", doc={}, arguments=(prompt, {"until": ["."], "max_gen_toks": 8}), idx=0)]
    [text] = model.generate_until(asked)
    ids = model.tok_encode(prompt)
    assert text == llm.generate(list(ids), temperature=0.0, max_tokens=8, stop=["."]).text
