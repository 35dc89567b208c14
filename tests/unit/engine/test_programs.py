"""Compiled programs that outlive the process: found again, told apart, compiled anew when damaged."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_ids, random_model, small_config

from gemworks.engine import programs
from gemworks.engine.engine import Engine
from gemworks.engine.programs import ProgramStore
from gemworks.engine.runner import Runner
from gemworks.engine.types import Request, SamplingParams
from gemworks.ops import select


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMWORKS_CACHE", str(tmp_path))
    return tmp_path / "programs"


def double(scale):
    function = jax.jit(lambda arrays: [array * scale for array in arrays])
    return lambda *arguments: function.lower(*arguments)


def get(store, key, arguments, lower):
    return store.get(key, arguments, lambda: lower(*arguments))


def refuse(*_arguments):
    raise AssertionError("compiled again")


def test_a_program_is_loaded_instead_of_compiled(folder):
    arguments = ([np.arange(3, dtype=np.float32)],)
    get(ProgramStore(), ("f", 2), arguments, double(2))
    again = get(ProgramStore(), ("f", 2), arguments, refuse)
    np.testing.assert_array_equal(again(*arguments)[0], [0, 2, 4])


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        (("f", 3), ([np.zeros(3, np.float32)],)),
        (("f", 2), ([np.zeros(4, np.float32)],)),
        (("f", 2), ([np.zeros(3, np.int32)],)),
        (("f", 2), ([np.zeros(3, np.float32), np.zeros(3, np.float32)],)),
    ],
)
def test_key_shapes_types_and_structure_tell_programs_apart(key, arguments):
    get(ProgramStore(), ("f", 2), ([np.zeros(3, np.float32)],), double(2))
    with pytest.raises(AssertionError, match="compiled again"):
        get(ProgramStore(), key, arguments, refuse)


def test_static_fields_of_a_model_tell_programs_apart():
    one, other = (jax.tree.structure(random_model(small_config(num_layers=1, window=w))) for w in (8, 16))
    assert repr(one) != repr(other)


@pytest.mark.parametrize("change", ["environment", "source", "processor"])
def test_the_machine_tells_programs_apart(change, monkeypatch):
    arguments = ([np.zeros(3, np.float32)],)
    get(ProgramStore(), ("f",), arguments, double(2))
    if change == "environment":
        monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
    elif change == "source":
        monkeypatch.setattr(programs, "_SOURCES", ("engine",))
    else:
        monkeypatch.setattr(programs, "_processor", lambda: "another")
    programs._machine.cache_clear()
    try:
        with pytest.raises(AssertionError, match="compiled again"):
            get(ProgramStore(), ("f",), arguments, refuse)
    finally:
        monkeypatch.undo()
        programs._machine.cache_clear()


def test_settings_of_jax_and_forced_backends_tell_programs_apart():
    arguments = ([np.zeros(3, np.float32)],)
    get(ProgramStore(), ("f",), arguments, double(2))
    with jax.default_matmul_precision("highest"), pytest.raises(AssertionError, match="compiled again"):
        get(ProgramStore(), ("f",), arguments, refuse)
    with select.force("linear", "xla"), pytest.raises(AssertionError, match="compiled again"):
        get(ProgramStore(), ("f",), arguments, refuse)
    get(ProgramStore(), ("f",), arguments, refuse)


DAMAGES = [lambda data: data[:-1], lambda data: data[:40], lambda data: b"", lambda data: data[:99] + b"x" + data[100:]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_program_is_compiled_again(folder, damage):
    arguments = ([np.zeros(3, np.float32)],)
    get(ProgramStore(), ("f",), arguments, double(2))
    [path] = folder.glob("*.program")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    get(ProgramStore(), ("f",), arguments, double(2))
    get(ProgramStore(), ("f",), arguments, refuse)


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("GEMWORKS_CACHE", str(tmp_path / "file"))
    arguments = ([np.ones(3, np.float32)],)
    store = ProgramStore()
    store.preload()
    np.testing.assert_array_equal(get(store, ("f",), arguments, double(2))(*arguments)[0], [2, 2, 2])


def test_where_jaxs_own_cache_is_set_it_is_used_instead(folder):
    """A program that XLA:CPU read from a cache may not be written again: it would lack its functions."""
    arguments = ([np.ones(3, np.float32)],)
    lowered = double(2)(*arguments)
    compiled = lowered.compile()
    jax.config.update("jax_compilation_cache_dir", "/nowhere")
    try:
        store = ProgramStore()
        store.preload()
        # Nothing is compiled while it is set: jax would go on to use that cache for the rest of the process.
        program = store.get(("f",), arguments, lambda: SimpleNamespace(compile=lambda: compiled))
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert program is compiled and not folder.exists()


def test_only_the_programs_used_last_are_kept(folder, monkeypatch):
    monkeypatch.setattr(programs, "_KEPT", 2)
    arguments = ([np.ones(3, np.float32)],)
    for key in "abc":
        get(ProgramStore(), (key,), arguments, double(2))
    assert len(list(folder.glob("*.program"))) == 2


def test_what_the_last_start_used_is_loaded_ahead(monkeypatch):
    arguments = ([np.zeros(3, np.float32)],)
    store = ProgramStore("start")
    for key in ("a", "b"):
        get(store, (key,), arguments, double(2))
    loaded, real = [], programs._load
    monkeypatch.setattr(programs, "_load", lambda name: loaded.append(name) or real(name))
    ahead = ProgramStore("start")
    ahead.preload()
    for coming in list(ahead._listed.result().values()):
        assert coming.result() is not None
    assert len(loaded) == 2
    get(ahead, ("b",), arguments, refuse)
    get(ahead, ("a",), arguments, refuse)
    assert len(loaded) == 2


def answer(model, store, prompt):
    runner = Runner(model, context=64, num_sequences=2, programs=store)
    request = Request(prompt=tuple(prompt), params=SamplingParams(max_tokens=6, temperature=0))
    return runner, [event.token_id for event in Engine(runner).submit(request)]


def test_a_model_answers_alike_from_kept_programs_and_updates_its_cache_in_place(monkeypatch):
    config = small_config(num_layers=2)
    model, prompt = random_model(config, dtype=jnp.bfloat16), random_ids(config, 20)
    _, plain = answer(model, None, prompt)
    _, first = answer(model, ProgramStore("m"), prompt)
    monkeypatch.setattr(programs, "_save", refuse)
    store = ProgramStore("m")
    store.preload()
    runner, second = answer(model, store, prompt)
    assert plain == first == second
    before = list(runner._kv)
    list(Engine(runner).submit(Request(prompt=tuple(prompt), params=SamplingParams(max_tokens=1, temperature=0))))
    assert all(array.is_deleted() for array in before)  # given away to the next step, not copied
