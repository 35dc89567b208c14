"""Ollama's options and durations: what is honoured, what is ignored, and that the rest is refused by its name."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemworks.engine.types import SamplingParams
from gemworks.errors import RequestError
from gemworks.server.errors import FieldError
from gemworks.server.ollama.options import read_keep_alive, read_options

# Ollama's name -> ours, and values that both take.
HONOURED = {
    "temperature": ("temperature", st.floats(0, 5)),
    "top_k": ("top_k", st.integers(0, 1000)),
    "top_p": ("top_p", st.floats(0.01, 1)),
    "min_p": ("min_p", st.floats(0, 1)),
    "seed": ("seed", st.integers(0, 2**63 - 1)),
    "repeat_penalty": ("repetition_penalty", st.floats(0.1, 10)),
    "presence_penalty": ("presence_penalty", st.floats(-2, 2)),
    "frequency_penalty": ("frequency_penalty", st.floats(-2, 2)),
    "stop": ("stop", st.lists(st.text(min_size=1), max_size=4)),
}
HINTS = ("num_gpu", "num_thread", "num_batch", "num_keep", "main_gpu", "low_vram", "use_mmap", "use_mlock", "numa")


@settings(max_examples=40)
@given(st.fixed_dictionaries({}, optional={name: values for name, (_, values) in HONOURED.items()}))
def test_what_is_honoured_reaches_the_sampler_as_it_was_sent(options):
    asked = read_options(options)
    assert asked.sampling == {HONOURED[name][0]: value for name, value in options.items()}
    SamplingParams(**{name: value for name, value in asked.sampling.items() if name != "stop"})


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(HINTS), st.one_of(st.integers(), st.booleans(), st.text())))
def test_hints_about_the_machine_change_nothing(options):
    assert read_options(options) == read_options({}) == read_options(None)


@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from([*HONOURED, "num_predict", "num_ctx", "mirostat", "repeat_last_n"]), st.text(max_size=8)
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda one: st.lists(one, max_size=3),
        ),
        max_size=4,
    )
)
def test_whatever_is_sent_is_taken_or_refused_by_name(options):
    """No other exception, and nothing that the sampler would refuse later."""
    try:
        asked = read_options(options)
    except FieldError as error:
        assert error.param is not None
        assert error.param.startswith("options.")
        name = error.param.removeprefix("options.")
        assert any(one.startswith(name) for one in options)
        assert name in str(error)
    else:
        SamplingParams(**{name: value for name, value in asked.sampling.items() if name != "stop"})
        assert asked.max_tokens is None or asked.max_tokens >= 1
        assert asked.context is None or asked.context >= 2


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({"seed": -1}, {}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 40.0}, {"top_k": 40}),
        ({"stop": "one"}, {"stop": ["one"]}),
        ({"stop": ["", "a"]}, {"stop": ["a"]}),
        ({"stop": []}, {"stop": []}),
        ({"temperature": None}, {}),
        ({"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1}, {}),
        ({"tfs_z": 1.0, "typical_p": 1, "penalize_newline": True}, {}),
        ({"repeat_last_n": 64}, {}),
        ({"repeat_last_n": -1, "repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        (
            {"repeat_last_n": 0, "repeat_penalty": 1.1},
            {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        ),
    ],
)
def test_values_that_mean_something_special(options, sampling):
    assert read_options(options).sampling == sampling


def test_top_p_zero_keeps_the_likeliest_token_alone():
    top_p = read_options({"top_p": 0}).sampling["top_p"]
    assert 0 < top_p < 1e-3
    SamplingParams(top_p=top_p)


@pytest.mark.parametrize(("value", "limit"), [(-1, None), (-2, None), (5, 5), (5.0, 5)])
def test_num_predict_without_limit_is_said_too(value, limit):
    asked = read_options({"num_predict": value})
    assert (asked.max_tokens, asked.has_max_tokens) == (limit, True)
    assert not read_options({}).has_max_tokens


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mirostat": 2}, "options.mirostat is not supported here, got 2. Leave it out, or send 0"),
        ({"mirostat": False}, "options.mirostat is not supported here"),
        ({"tfs_z": 0.5}, "options.tfs_z is not supported here"),
        ({"repeat_last_n": 64, "repeat_penalty": 1.1}, "options.repeat_last_n is not supported here, got 64"),
        ({"repeat_penalty": 0}, "options.repeat_penalty must be above 0 (1 is off), got 0.0."),
        ({"temperature": -1}, "options.temperature must be 0 (greedy) or more, got -1.0."),
        ({"temperature": "0.5"}, "options.temperature must be a number, got '0.5'."),
        ({"num_predict": 1.5}, "options.num_predict must be a whole number, got 1.5."),
        ({"num_predict": 0}, "options.num_predict must be at least 1, or -1 for no limit, got 0."),
        ({"num_predict": True}, "options.num_predict must be a whole number, got True."),
        ({"num_ctx": 1}, "options.num_ctx must be at least 2 tokens, got 1."),
        ({"seed": 2**63}, "options.seed must be a whole number"),
        ({"stop": [1]}, "options.stop must be an array of texts, got [1]."),
        ({"num_predic": 3}, 'there is no option "num_predic". Did you mean "num_predict"?'),
    ],
)
def test_refusals_say_what_is_wrong(options, told):
    with pytest.raises(RequestError) as raised:
        read_options(options)
    assert str(raised.value).startswith(told)


@given(st.floats(0, 1e9))
def test_keep_alive_in_seconds(seconds):
    assert read_keep_alive(seconds) == seconds
    assert read_keep_alive(-seconds - 1) == -1.0


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_keep_alive_as_a_duration(hours, minutes, seconds):
    assert read_keep_alive(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5m", 300), ("0", 0), ("300", 300), ("1.5h", 5400), ("250ms", 0.25), ("-1", -1), ("-5m", -1), (math.inf, -1)],
)
def test_keep_alive_as_clients_write_it(value, seconds):
    assert read_keep_alive(value) == pytest.approx(seconds)
    assert read_keep_alive(None) is None


@pytest.mark.parametrize("value", ["", "soon", "5 m", "5mm", "m", "1h-5m", True, math.nan, [5]])
def test_keep_alive_that_is_no_duration_is_refused(value):
    with pytest.raises(FieldError, match="keep_alive must be seconds or a duration"):
        read_keep_alive(value)
