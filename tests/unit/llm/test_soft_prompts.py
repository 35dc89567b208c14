"""A soft prompt made of words' embeddings is these words: the same answers and scores, in every chunking and cache."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gemworks import LLM
from gemworks.errors import CheckpointError, ConfigError, RequestError
from gemworks.weights import creating
from gemworks.weights.modelfile import parse_modelfile, render_modelfile

WORDS = [2, 300, 41, 57, 700]
TEXT = [600, 77, 78, 300, 301, 302, 5, 6]


def write(folder, rows, **fields):
    """A PEFT directory of a soft prompt."""
    folder.mkdir(exist_ok=True)
    told = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(rows), "token_dim": rows.shape[1]}
    (folder / "adapter_config.json").write_text(json.dumps(told | {"num_transformer_submodules": 1} | fields))
    save_file({"prompt_embeddings": np.ascontiguousarray(rows)}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def llm():
    return LLM("tiny", context=256)


@pytest.fixture(scope="module")
def rows(llm):
    return np.asarray(llm._engine._runner.model.embed(np.array(WORDS, np.int32)))


@pytest.fixture(scope="module")
def name(llm, rows, tmp_path_factory):
    return llm.load_adapter(write(tmp_path_factory.mktemp("prompts") / "words", rows))


def test_answers_are_those_after_the_words(llm, name):
    asked = {"max_tokens": 10, "temperature": 0.0}
    expected = llm.generate([WORDS + TEXT], **asked)[0]
    for _ in range(2):  # the second time from the prefix cache
        got = llm.generate([TEXT], adapter=name, **asked)[0]
        assert got.token_ids == expected.token_ids
    assert llm.generate([TEXT], **asked)[0].token_ids != expected.token_ids, "the words change nothing"


def test_scores_are_those_after_the_words(llm, name):
    def scores(ids, score_from, **told):
        ask = llm.submit(llm.prepare(ids, kind="score", score_from=score_from, **told))
        return [one.logprob for one in ask.finish().scores if one]

    expected = scores(WORDS + TEXT, len(WORDS) + 1)
    np.testing.assert_allclose(scores(TEXT, 1, adapter=name), expected, rtol=1e-2)  # activations are rounded to int8
    assert np.abs(np.array(scores(TEXT, 1)) - expected).max() > 0.3


@pytest.mark.exhaustive
def test_another_load_of_the_name_is_another_prompt(llm, rows, tmp_path):
    asked = {"max_tokens": 10, "temperature": 0.0}
    llm.load_adapter(write(tmp_path / "p", rows), name="changing")
    before = llm.generate([TEXT], adapter="changing", **asked)[0].token_ids
    llm.load_adapter(write(tmp_path / "p", -3 * rows[::-1]), name="changing")
    assert llm.generate([TEXT], adapter="changing", **asked)[0].token_ids != before
    llm.unload_adapter("changing")
    with pytest.raises(RequestError, match='no adapter named "changing"'):
        llm.generate([TEXT], adapter="changing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, rows: write(folder, rows[:, :5]), "must hold prompt_embeddings"),
        (lambda folder, rows: write(folder, rows, num_virtual_tokens=4), r"prompt_embeddings \[4, "),
        (lambda folder, rows: write(folder, rows * np.float32(np.nan)), "must hold finite numbers"),
        (lambda folder, rows: write(folder, rows, num_transformer_submodules=2), "another kind"),
    ],
)
def test_what_is_no_prompt_of_this_model_is_refused(llm, rows, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        llm.load_adapter(change(tmp_path / "p", rows))


def test_a_modelfile_names_the_adapter_of_a_created_model(llm, rows, name, tmp_path):
    """By a path relative to the file; the model asks with it, and one made from that keeps it."""
    write(tmp_path / "words", rows)
    told = parse_modelfile("FROM tiny\nADAPTER ./words\nPARAMETER num_ctx 256\nPARAMETER temperature 0")
    creating.save("with-words", told, where="Modelfile", folder=tmp_path)
    creating.save("with-words-too", parse_modelfile("FROM with-words\nSYSTEM Hm."), where="Modelfile", folder=tmp_path)
    assert parse_modelfile(render_modelfile(told)) == told
    expected = llm.generate([TEXT], adapter=name, max_tokens=8, temperature=0.0)[0].token_ids
    created = LLM("with-words-too")
    assert created.generate([TEXT], max_tokens=8)[0].token_ids == expected
    created.close()
    with pytest.raises(ConfigError, match=r"has an adapter already \(.*words\), and a model takes one"):
        creating.save("twice", parse_modelfile("FROM with-words\nADAPTER x"), where="Modelfile", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"Modelfile: ADAPTER: .*nothing must be the directory of an adapter"):
        creating.save("none", parse_modelfile("FROM tiny\nADAPTER nothing"), where="Modelfile", folder=tmp_path)
    (tmp_path / "words" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ConfigError, match=r"ADAPTER: .*peft_type is 'IA3'"):
        creating.save("other", parse_modelfile("FROM tiny\nADAPTER words"), where="Modelfile", folder=tmp_path)
